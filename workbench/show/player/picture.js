/*
The picture: waveform, mel, f0 and findings in lanes below one another, over one time axis. The base canvas holds
what changes with the view, the overlay the cursor and the loop, which change many times a second.
*/

const GUTTER = 46; // pixels left of the time axis, for the labels of the other axes
const MARGIN = 10; // pixels right of the time axis
const LANES = { ruler: 18, wave: 88, marks: 12, mel: 124, f0: 60, frames: 16, tokens: 16 }; // heights in pixels
const LANE_GAP = 4; // pixels below a lane
const LABEL_WIDTH = 46; // pixels between the labels of a ruler, so that they can be read
const SECOND_STEPS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10];
const COUNT_STEPS = [1, 2, 5, 10, 25, 50, 100, 250, 500, 1000];
const MIN_VIEW_S = 0.1; // seconds of the closest zoom
const FULL_SCALE = 32768; // of a PCM16 sample

/**
 * @param {number} x
 * @param {number} low
 * @param {number} high
 * @returns {number}
 */
function clamp(x, low, high) {
  return Math.min(Math.max(x, low), high);
}

class Picture {
  /**
   * @param {HTMLCanvasElement} base
   * @param {HTMLCanvasElement} overlay
   * @param {PlayerData} data
   */
  constructor(base, overlay, data) {
    this.base = base;
    this.overlay = overlay;
    this.data = data;
    this.view = [0, data.length]; // the seconds that are visible
    this.gain = 1; // of the waveform's height; never of its sound
    this.colours = LIGHT;
    const hasFindings = data.traces.some((trace) => trace.findings.length);
    const hasF0 = data.traces.some((trace) => trace.f0.length);
    this.lanes = {}; // name -> [top, height] in pixels
    this.height = 0;
    for (const [name, height] of Object.entries(LANES)) {
      if ((name === "marks" && !hasFindings) || (name === "f0" && !hasF0)) continue;
      this.lanes[name] = [this.height, height];
      this.height += height + (name === "ruler" || name === "frames" ? 0 : LANE_GAP);
    }
    let maxF0 = 100; // Hz, the least range of the axis
    for (const trace of data.traces) for (const hz of trace.f0) maxF0 = Math.max(maxF0, hz);
    this.f0Top = maxF0 * 1.1;
  }

  /** Fit both canvases to the width of the page and the resolution of the screen. */
  resize() {
    this.width = Math.max(this.base.clientWidth, 200);
    const ratio = window.devicePixelRatio || 1;
    for (const canvas of [this.base, this.overlay]) {
      canvas.style.height = `${this.height}px`;
      canvas.width = Math.round(this.width * ratio);
      canvas.height = Math.round(this.height * ratio);
      canvas.getContext("2d").setTransform(ratio, 0, 0, ratio, 0, 0);
    }
  }

  // ---- the time axis

  /** Pixels of the time axis. */
  get span() {
    return this.width - GUTTER - MARGIN;
  }

  /** Seconds of the view. */
  get duration() {
    return this.view[1] - this.view[0];
  }

  /**
   * @param {number} t seconds
   * @returns {number} pixels
   */
  x(t) {
    return GUTTER + ((t - this.view[0]) / this.duration) * this.span;
  }

  /**
   * @param {number} x pixels
   * @returns {number} seconds
   */
  t(x) {
    return clamp(this.view[0] + ((x - GUTTER) / this.span) * this.duration, 0, this.data.length);
  }

  /**
   * Change the duration of the view and keep a time at its place in the picture.
   *
   * @param {number} duration seconds
   * @param {number} t seconds
   */
  zoom(duration, t) {
    const share = (t - this.view[0]) / this.duration;
    const allowed = clamp(duration, Math.min(MIN_VIEW_S, this.data.length), this.data.length);
    const left = clamp(t - share * allowed, 0, this.data.length - allowed);
    this.view = [left, left + allowed];
  }

  /** @param {number} by seconds */
  pan(by) {
    const duration = this.duration;
    const left = clamp(this.view[0] + by, 0, this.data.length - duration);
    this.view = [left, left + duration];
  }

  /** @param {number} t seconds that come to the middle of the view */
  centre(t) {
    this.pan(t - (this.view[0] + this.view[1]) / 2);
  }

  // ---- the base canvas

  /** @param {Trace|null} trace null hides the picture, for a blind comparison */
  draw(trace) {
    const g = this.base.getContext("2d");
    g.fillStyle = this.colours.back;
    g.fillRect(0, 0, this.width, this.height);
    g.font = "10.5px system-ui, sans-serif";
    this.drawRuler(g, "ruler", 1, "s", SECOND_STEPS, formatRulerSecond);
    this.drawRuler(g, "frames", this.data.frame_seconds, "frame", COUNT_STEPS, String);
    this.drawRuler(g, "tokens", this.data.token_seconds, "token", COUNT_STEPS, String);
    if (!trace) {
      this.drawHidden(g);
      return;
    }
    this.drawLane(g, "wave", (top, height) => this.drawWave(g, trace, top, height));
    this.drawLane(g, "mel", (top, height) => this.drawMel(g, trace, top, height));
    this.drawLane(g, "f0", (top, height) => this.drawF0(g, trace, top, height));
    this.drawLane(g, "marks", (top, height) => this.drawMarks(g, trace, top, height));
    this.drawAxes(g);
  }

  /**
   * Draw a lane, if there is one, and nothing outside it.
   *
   * @param {CanvasRenderingContext2D} g
   * @param {string} name
   * @param {(top: number, height: number) => void} paint
   */
  drawLane(g, name, paint) {
    if (!this.lanes[name]) return;
    const [top, height] = this.lanes[name];
    g.save();
    g.beginPath();
    g.rect(GUTTER, top, this.span, height);
    g.clip();
    if (name !== "marks") {
      g.fillStyle = this.colours.panel;
      g.fillRect(GUTTER, top, this.span, height);
    }
    paint(top, height);
    g.restore();
  }

  /**
   * Draw a ruler in any unit, labelled as densely as can be read.
   *
   * @param {CanvasRenderingContext2D} g
   * @param {string} lane
   * @param {number} unit seconds of one unit
   * @param {string} label
   * @param {number[]} steps distances between labels to choose from, in units
   * @param {(value: number, step: number) => string} format
   */
  drawRuler(g, lane, unit, label, steps, format) {
    const [top, height] = this.lanes[lane];
    const unitPixels = (unit * this.span) / this.duration;
    const step = steps.find((candidate) => candidate * unitPixels >= LABEL_WIDTH) ?? steps.at(-1);
    g.fillStyle = this.colours.soft;
    g.strokeStyle = this.colours.line;
    g.textBaseline = "middle";
    g.textAlign = "right";
    g.fillText(label, GUTTER - 6, top + height / 2);
    g.textAlign = "left";
    g.beginPath();
    // Labelled ticks; the small number keeps a tick that lies exactly at the left edge.
    const first = Math.ceil(this.view[0] / unit / step - 1e-9);
    for (let k = first; this.x(k * step * unit) <= this.width - MARGIN + 0.5; k++) {
      const x = Math.round(this.x(k * step * unit)) + 0.5;
      g.moveTo(x, top + 3);
      g.lineTo(x, top + height - 1);
      if (x < this.width - 26) g.fillText(format(k * step, step), x + 3, top + height / 2);
    }
    // A short tick for every frame or token, once they are far enough apart.
    if (unitPixels >= 5 && unit !== 1) {
      for (let k = Math.ceil(this.view[0] / unit); this.x(k * unit) <= this.width - MARGIN; k++) {
        const x = Math.round(this.x(k * unit)) + 0.5;
        g.moveTo(x, top);
        g.lineTo(x, top + 3);
      }
    }
    g.stroke();
  }

  drawWave(g, trace, top, height) {
    const half = height / 2;
    const middle = top + half;
    g.strokeStyle = this.colours.line;
    g.beginPath();
    g.moveTo(GUTTER, middle + 0.5);
    g.lineTo(this.width, middle + 0.5);
    g.stroke();
    g.strokeStyle = g.fillStyle = this.colours.wave;
    const y = (sample) => middle - clamp((sample / FULL_SCALE) * this.gain, -1, 1) * (half - 1);
    const samplesPerPixel = (this.duration * trace.rate) / this.span;
    if (samplesPerPixel < 3) this.drawSamples(g, trace, y);
    else this.drawEnvelope(g, trace, y);
  }

  /** Draw a line through every sample of the view. */
  drawSamples(g, { samples, rate }, y) {
    g.beginPath();
    const last = Math.min(Math.ceil(this.view[1] * rate), samples.length - 1);
    for (let i = Math.floor(this.view[0] * rate); i <= last; i++) g.lineTo(this.x(i / rate), y(samples[i]));
    g.stroke();
  }

  /** Draw a bar from the smallest to the largest sample of every column of screen pixels. */
  drawEnvelope(g, { samples, rate }, y) {
    const column = 1 / (window.devicePixelRatio || 1);
    for (let x = GUTTER; x < this.width - MARGIN; x += column) {
      const start = Math.floor(this.t(x) * rate);
      const end = Math.min(Math.ceil(this.t(x + column) * rate), samples.length);
      let low = FULL_SCALE;
      let high = -FULL_SCALE;
      for (let i = start; i < end; i++) {
        if (samples[i] < low) low = samples[i];
        if (samples[i] > high) high = samples[i];
      }
      if (end > start) g.fillRect(x, y(high), column, Math.max(y(low) - y(high), 1));
    }
  }

  drawMel(g, trace, top, height) {
    const frame = this.data.frame_seconds;
    g.imageSmoothingEnabled = this.x(frame) - this.x(0) < 3; // a sharp block per frame once it is wide enough
    const end = this.x(trace.picture.naturalWidth * frame);
    g.drawImage(trace.picture, this.x(0), top, end - this.x(0), height);
  }

  drawF0(g, trace, top, height) {
    g.strokeStyle = g.fillStyle = this.colours.f0;
    g.lineWidth = 1.5;
    g.beginPath();
    let connected = false; // whether the frame before is voiced
    trace.f0.forEach((hz, frame) => {
      const x = this.x((frame + 0.5) * this.data.frame_seconds);
      const y = top + height - (hz / this.f0Top) * height;
      if (hz > 0 && connected) g.lineTo(x, y);
      else if (hz > 0) {
        g.moveTo(x, y);
        g.fillRect(x - 0.75, y - 0.75, 1.5, 1.5); // a dot, for a voiced frame that stands alone
      }
      connected = hz > 0;
    });
    g.stroke();
  }

  drawMarks(g, trace, top, height) {
    for (const finding of trace.findings) {
      const left = this.x(finding.start);
      const right = this.x(finding.end);
      const width = Math.max(right - left, 3);
      g.fillStyle = this.kindColour(finding.kind);
      g.fillRect((left + right - width) / 2, top + 2, width, height - 3);
    }
  }

  /**
   * @param {string} kind of a finding
   * @returns {string}
   */
  kindColour(kind) {
    return this.colours.kinds[this.data.kinds.indexOf(kind) % this.colours.kinds.length];
  }

  /** Label the vertical axes: full scale, mel bins in Hz, f0. */
  drawAxes(g) {
    const { wave, mel, f0 } = this.lanes;
    const label = (text, y, [top, height]) => g.fillText(text, GUTTER - 6, clamp(y, top + 6, top + height - 6));
    const edge = String(1 / this.gain);
    g.textAlign = "right";
    g.fillStyle = this.colours.soft;
    label(`+${edge}`, 0, wave);
    label("0", wave[0] + wave[1] / 2, wave);
    label(`\u2212${edge}`, Infinity, wave);
    for (const [bin, text] of this.data.ticks) {
      label(text, mel[0] + mel[1] * (1 - (bin + 0.5) / this.data.bins), mel);
    }
    if (!f0) return;
    label(`${Math.round(this.f0Top)} Hz`, 0, f0);
    label("f0", f0[0] + f0[1] / 2, f0);
    label("0", Infinity, f0);
  }

  /** Cover the lanes during a blind comparison. */
  drawHidden(g) {
    const top = this.lanes.wave[0];
    const bottom = this.lanes.frames[0] - LANE_GAP;
    g.fillStyle = this.colours.panel;
    g.fillRect(GUTTER, top, this.span, bottom - top);
    g.fillStyle = this.colours.soft;
    g.textAlign = "center";
    g.font = "13px system-ui, sans-serif";
    g.fillText("X is A or B. The picture is hidden until it is revealed.", GUTTER + this.span / 2, (top + bottom) / 2);
  }

  // ---- the overlay

  /**
   * Draw the cursor, the line under the pointer, and the loop.
   *
   * @param {number} position seconds
   * @param {number|null} pointer seconds
   * @param {Range|null} region
   * @param {boolean} filled whether the loop is on
   */
  drawCursor(position, pointer, region, filled) {
    const g = this.overlay.getContext("2d");
    const top = this.lanes.ruler[1];
    const bottom = this.lanes.frames[0];
    g.clearRect(0, 0, this.width, this.height);
    g.save();
    g.beginPath();
    g.rect(GUTTER - 5, 0, this.span + 10, this.height);
    g.clip();
    if (region) {
      const left = this.x(region[0]);
      const right = this.x(region[1]);
      g.fillStyle = this.colours.loop;
      if (filled) g.fillRect(left, 0, right - left, bottom);
      g.fillStyle = this.colours.edge;
      g.fillRect(left, 0, right - left, 3);
      g.fillRect(left - 0.5, 0, 1, bottom);
      g.fillRect(right - 0.5, 0, 1, bottom);
    }
    if (pointer !== null) {
      g.fillStyle = this.colours.soft;
      g.fillRect(this.x(pointer) - 0.25, top, 0.5, bottom - top);
    }
    // A vertical line with a triangle at its head.
    const x = this.x(position);
    g.fillStyle = this.colours.cursor;
    g.fillRect(x - 0.75, top - 2, 1.5, this.height - top + 2);
    g.beginPath();
    g.moveTo(x - 4.5, top - 8);
    g.lineTo(x + 4.5, top - 8);
    g.lineTo(x, top - 1);
    g.fill();
    g.restore();
  }
}

/**
 * @param {number} value seconds
 * @param {number} step seconds between labels
 * @returns {string}
 */
function formatRulerSecond(value, step) {
  if (step < 0.1) return value.toFixed(2);
  return value.toFixed(step < 1 ? 1 : 0);
}
