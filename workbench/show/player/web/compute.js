/*
Pictures and differences that the analyst computes: they come later than they are asked for, and are kept.
*/

const SPECTRUM_RANGE = [-100, -10]; // dB of full scale, darkest and brightest, the same for every trace
const MAX_DELAY_S = 1; // seconds between two sounds that the difference looks for

/**
 * @typedef {object} Difference
 * @property {Float32Array|null} samples of full scale, on the time axis of the candidate; NaN where one side has none
 * @property {number} scale the largest of them
 * @property {string} text what was done and what is left
 */

class Computed {
  /** @param {PlayerData} data @param {() => void} onready redraws */
  constructor(data, onready) {
    this.data = data;
    this.onready = onready;
    this.analyst = new Analyst();
    this.spectra = new Map(); // trace -> {key, start, end, picture, busy}
    this.differences = new Map(); // "reference-candidate" -> Difference
    this.window = 1024; // samples
    this.reference = 0; // index of a trace
    this.colours = bytesOf(data.colours);
  }

  /**
   * Draw the spectrogram of the view; while it is computed, the latest one, stretched.
   *
   * @param {Lane} lane
   * @param {Trace} trace
   */
  drawSpectrogram(lane, trace) {
    const { g, axis, top, height } = lane;
    const ratio = window.devicePixelRatio || 1;
    const [start, end] = axis.view.map((t) => t * trace.rate); // samples, with their fractions
    const columns = Math.round(axis.span);
    const key = [start, end, columns, this.window].join();
    const kept = this.spectra.get(trace) ?? { busy: false };
    this.spectra.set(trace, kept);
    if (kept.picture) {
      const left = axis.x(kept.start / trace.rate);
      const right = axis.x(kept.end / trace.rate);
      g.imageSmoothingEnabled = true;
      g.drawImage(kept.picture, left, top, right - left, height);
    } else drawNote(lane, "computing the spectrogram");
    if (kept.key === key || kept.busy) return;
    kept.busy = true;
    const size = this.window;
    const offset = Math.max(0, Math.floor(start) - size);
    const task = { samples: trace.samples.slice(offset, Math.ceil(end) + size), offset, start, end, columns, size };
    this.analyst.run("spectrogram", task).then(({ levels, bins }) => {
      const rows = Math.min(bins, Math.round(height * ratio));
      Object.assign(kept, { key, start, end, busy: false, picture: this.paint(levels, bins, columns, rows) });
      this.onready();
    });
  }

  /** @returns {HTMLCanvasElement} each row the loudest of its bins */
  paint(levels, bins, columns, rows) {
    const picture = document.createElement("canvas");
    picture.width = columns;
    picture.height = rows;
    const g = picture.getContext("2d");
    const image = g.createImageData(columns, rows);
    const [low, high] = SPECTRUM_RANGE;
    for (let row = 0; row < rows; row++) {
      const first = Math.floor((row * bins) / rows);
      const last = Math.max(first + 1, Math.floor(((row + 1) * bins) / rows));
      for (let column = 0; column < columns; column++) {
        let level = -200;
        for (let bin = first; bin < last; bin++) level = Math.max(level, levels[column * bins + bin]);
        const colour = 3 * Math.round(clamp((level - low) / (high - low), 0, 1) * 255);
        const at = 4 * ((rows - 1 - row) * columns + column);
        image.data.set(this.colours.subarray(colour, colour + 3), at);
        image.data[at + 3] = 255;
      }
    }
    g.putImageData(image, 0, 0);
    return picture;
  }

  /**
   * Return the difference of a trace to the reference, or a note until it is computed.
   *
   * @param {Trace} candidate
   * @returns {Difference}
   */
  difference(candidate) {
    const reference = this.data.traces[this.reference];
    const letter = letterOf(this.reference);
    const note = (text) => ({ samples: null, scale: 1, text });
    if (candidate === reference) return note(`${letter} is the reference of the difference`);
    if (candidate.rate !== reference.rate) return note(`no difference to ${letter}: ${reference.rate} Hz is another rate`);
    const own = letterOf(this.data.traces.indexOf(candidate));
    const key = `${letter}-${own}`;
    if (this.differences.has(key)) return this.differences.get(key);
    const found = note(`computing ${own} \u2212 ${letter}`);
    this.differences.set(key, found);
    const maxLag = Math.round(MAX_DELAY_S * candidate.rate);
    this.analyst.run("delay", { reference: reference.samples, candidate: candidate.samples, maxLag }).then((aligned) => {
      Object.assign(found, this.subtract(reference, candidate, aligned, `${own} \u2212 ${letter}`));
      this.onready();
    });
    return found;
  }

  /** @returns {Difference} */
  subtract(reference, candidate, { lag, correlation }, title) {
    const isAligned = Math.abs(correlation) >= this.data.min_correlation;
    const delay = isAligned ? lag : 0;
    const sign = isAligned && correlation < 0 ? -1 : 1;
    const samples = new Float32Array(candidate.samples.length).fill(NaN);
    let scale = 0;
    let left = 0; // energy of the difference
    let whole = 0; // energy of the reference
    for (let i = Math.max(0, delay); i < Math.min(samples.length, reference.samples.length + delay); i++) {
      const other = (reference.samples[i - delay] / FULL_SCALE) * reference.gain;
      samples[i] = (sign * candidate.samples[i] / FULL_SCALE) * candidate.gain - other;
      left += samples[i] ** 2;
      whole += other ** 2;
      scale = Math.max(scale, Math.abs(samples[i]));
    }
    const level = formatDecibels(whole > 0 && left > 0 ? 10 * Math.log10(left / whole) : null);
    const parts = [scale === 0 ? `${title}: no sample differs` : `${title}: ${level} beside ${title.at(-1)}`];
    if (!isAligned) parts.push(`not aligned (correlation ${formatFixed(correlation, 2)} is too low), compared as they are`);
    else if (lag) parts.push(`delay of ${lag} samples (${((1000 * lag) / candidate.rate).toFixed(2)} ms) undone`);
    else parts.push("no delay of whole samples");
    if (sign < 0) parts.push("opposite polarity undone");
    if (isAligned) parts.push(`correlation ${formatFixed(correlation, 4)}`);
    if (reference.gain !== 1 || candidate.gain !== 1) parts.push("levels matched");
    return { samples, scale: scale || 1, text: parts.join(", ") };
  }

  close() {
    this.analyst.close();
  }
}
