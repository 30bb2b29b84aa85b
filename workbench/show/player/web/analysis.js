/*
What takes long: spectrograms and the delay between two sounds. A worker computes them, so that the page stays at
hand; where a page forbids workers (a strict Content-Security-Policy) the page computes them itself.
*/

/**
 * Return the functions. They use nothing outside, because the worker gets this function's own text.
 *
 * @returns {Object<string, function(object): object>}
 */
function analysis() {
  const tables = new Map(); // size -> cosines and sines, for many transforms of one size

  /** Fast Fourier transform in place, of a power of two. @param {Float64Array} re @param {Float64Array} im */
  function fft(re, im) {
    const n = re.length;
    if (!tables.has(n)) {
      const cos = new Float64Array(n / 2).map((_, i) => Math.cos((2 * Math.PI * i) / n));
      const sin = new Float64Array(n / 2).map((_, i) => -Math.sin((2 * Math.PI * i) / n));
      const order = new Uint32Array(n);
      for (let i = 1; i < n; i++) order[i] = (order[i >> 1] >> 1) | (i & 1 ? n >> 1 : 0);
      tables.set(n, { cos, sin, order });
    }
    const { cos, sin, order } = tables.get(n);
    for (let i = 0; i < n; i++) {
      const j = order[i];
      if (i < j) {
        [re[i], re[j]] = [re[j], re[i]];
        [im[i], im[j]] = [im[j], im[i]];
      }
    }
    transform(re, im, cos, sin);
  }

  function transform(re, im, cos, sin) {
    const n = re.length;
    for (let size = 2; size <= n; size *= 2) {
      const half = size / 2;
      const stride = n / size;
      for (let start = 0; start < n; start += size) {
        for (let k = 0, w = 0; k < half; k++, w += stride) {
          const a = start + k;
          const b = a + half;
          const x = re[b] * cos[w] - im[b] * sin[w];
          const y = re[b] * sin[w] + im[b] * cos[w];
          re[b] = re[a] - x;
          im[b] = im[a] - y;
          re[a] += x;
          im[a] += y;
        }
      }
    }
  }

  /**
   * Levels in dB of full scale, a column for every pixel of the view. Within a column the loudest of overlapping
   * windows counts, so that no click falls between two of them.
   *
   * @param {{samples: Int16Array, offset: number, start: number, end: number, columns: number, size: number}} task
   *   `samples` begin at the sample `offset`; `start` and `end` are samples too, with fractions; `size` those of a window
   * @returns {{levels: Float32Array, bins: number}} column by column, the lowest frequency first
   */
  function spectrogram({ samples, offset, start, end, columns, size }) {
    const bins = size / 2 + 1;
    const levels = new Float32Array(columns * bins).fill(-200);
    const hann = new Float64Array(size).map((_, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / size));
    const scale = 4 / size / 32768; // a sine of full scale is 0 dB
    const re = new Float64Array(size);
    const im = new Float64Array(size);
    const width = (end - start) / columns;
    const repeats = Math.max(1, Math.ceil(width / (size / 2)));
    for (let column = 0; column < columns; column++) {
      for (let repeat = 0; repeat < repeats; repeat++) {
        const centre = start + (column + (repeat + 0.5) / repeats) * width;
        const first = Math.round(centre - size / 2) - offset;
        for (let i = 0; i < size; i++) {
          re[i] = (samples[first + i] ?? 0) * hann[i];
          im[i] = 0;
        }
        fft(re, im);
        for (let bin = 0; bin < bins; bin++) {
          const level = 10 * Math.log10(scale * scale * (re[bin] * re[bin] + im[bin] * im[bin]) + 1e-20);
          const at = column * bins + bin;
          if (level > levels[at]) levels[at] = level;
        }
      }
    }
    return { levels, bins };
  }

  /**
   * The delay at which two sounds are most alike, by cross-correlation, to a whole sample.
   *
   * @param {{reference: Int16Array, candidate: Int16Array, maxLag: number}} task
   * @returns {{lag: number, correlation: number}} samples by which the candidate is later; -1 to 1
   */
  function delay({ reference, candidate, maxLag }) {
    let n = 2;
    while (n < Math.max(reference.length, candidate.length) + maxLag) n *= 2;
    // Both sounds in one transform, as real and imaginary part.
    const re = new Float64Array(n);
    const im = new Float64Array(n);
    re.set(reference);
    im.set(candidate);
    fft(re, im);
    const crossRe = new Float64Array(n);
    const crossIm = new Float64Array(n);
    for (let k = 0; k < n; k++) {
      const m = (n - k) % n;
      const aRe = (re[k] + re[m]) / 2;
      const aIm = (im[k] - im[m]) / 2;
      const bRe = (im[k] + im[m]) / 2;
      const bIm = (re[m] - re[k]) / 2;
      // Conjugate of the usual product: a second forward transform then is the inverse.
      crossRe[k] = aRe * bRe + aIm * bIm;
      crossIm[k] = -(aRe * bIm - aIm * bRe);
    }
    fft(crossRe, crossIm);
    let lag = 0;
    for (let at = -maxLag; at <= maxLag; at++) {
      if (Math.abs(crossRe[(at + n) % n]) > Math.abs(crossRe[(lag + n) % n])) lag = at;
    }
    const energies = [0, 0];
    for (const value of reference) energies[0] += value * value;
    for (const value of candidate) energies[1] += value * value;
    const scale = n * Math.sqrt(energies[0] * energies[1]);
    return { lag, correlation: scale > 0 ? crossRe[(lag + n) % n] / scale : 0 };
  }

  return { spectrogram, delay };
}

class Analyst {
  constructor() {
    this.waiting = new Map(); // number of a task -> the task and what to call
    this.count = 0;
    this.worker = null;
    this.failed = false; // whether workers are forbidden here
  }

  /**
   * @param {"spectrogram"|"delay"} name
   * @param {object} task
   * @returns {Promise<object>}
   */
  run(name, task) {
    if (!this.worker && !this.failed) this.startWorker();
    return new Promise((resolve) => {
      if (this.failed) {
        resolve(this.functions[name](task));
        return;
      }
      const number = this.count++;
      this.waiting.set(number, { name, task, resolve });
      this.worker.postMessage({ number, name, task });
    });
  }

  startWorker() {
    const code = `const functions = (${analysis})();
      onmessage = ({ data: { number, name, task } }) => postMessage({ number, result: functions[name](task) });`;
    try {
      const address = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
      this.worker = new Worker(address);
      this.worker.onmessage = ({ data: { number, result } }) => {
        this.waiting.get(number)?.resolve(result);
        this.waiting.delete(number);
      };
      this.worker.onerror = () => this.computeHere();
    } catch {
      this.computeHere();
    }
  }

  /** Do without a worker, also what it was given already. */
  computeHere() {
    this.failed = true;
    this.functions = analysis();
    for (const { name, task, resolve } of this.waiting.values()) resolve(this.functions[name](task));
    this.waiting.clear();
  }

  close() {
    this.worker?.terminate();
  }
}
