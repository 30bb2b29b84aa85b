/*
The time axis: which seconds are visible, where they lie on the screen, and the rulers.
*/

const GUTTER = 46; // pixels left of the time axis, for the labels of the other axes
const MARGIN = 10; // pixels right of the time axis
const LABEL_WIDTH = 52; // pixels between the labels of a ruler, so that they can be read
const SECOND_STEPS = [1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30];
const COUNT_STEPS = [1, 2, 5, 10, 25, 50, 100, 250, 500, 1000];
const MIN_VIEW_SAMPLES = 12; // of the closest zoom

/**
 * @param {number} x
 * @param {number} low
 * @param {number} high
 * @returns {number}
 */
function clamp(x, low, high) {
  return Math.min(Math.max(x, low), high);
}

class TimeAxis {
  /** @param {number} length seconds @param {number} maxRate Hz, of the finest trace */
  constructor(length, maxRate) {
    this.length = length;
    this.minDuration = Math.min(MIN_VIEW_SAMPLES / maxRate, length);
    this.view = [0, length]; // the seconds that are visible
    this.width = 200; // pixels of the whole picture
  }

  /** Pixels of the time axis. */
  get span() {
    return this.width - GUTTER - MARGIN;
  }

  /** Right end of the time axis in pixels. */
  get right() {
    return this.width - MARGIN;
  }

  /** Seconds of the view. */
  get duration() {
    return this.view[1] - this.view[0];
  }

  /** Whether the view is less than the whole. */
  get isZoomed() {
    return this.duration < this.length * 0.9999;
  }

  /** @param {number} t seconds @returns {number} pixels */
  x(t) {
    return GUTTER + ((t - this.view[0]) / this.duration) * this.span;
  }

  /** @param {number} x pixels @returns {number} seconds */
  t(x) {
    return clamp(this.view[0] + ((x - GUTTER) / this.span) * this.duration, 0, this.length);
  }

  /**
   * Change the duration of the view and keep a time at its place in the picture.
   *
   * @param {number} duration seconds
   * @param {number} t seconds
   */
  zoom(duration, t) {
    const share = (t - this.view[0]) / this.duration;
    const allowed = clamp(duration, this.minDuration, this.length);
    this.show(t - share * allowed, allowed);
  }

  /** @param {number} by seconds */
  pan(by) {
    this.show(this.view[0] + by, this.duration);
  }

  /** @param {number} t seconds that come to the middle of the view */
  centre(t) {
    this.show(t - this.duration / 2, this.duration);
  }

  /** @param {number} left seconds @param {number} duration seconds */
  show(left, duration) {
    const allowed = clamp(duration, this.minDuration, this.length);
    const start = clamp(left, 0, this.length - allowed);
    this.view = [start, start + allowed];
  }

  /**
   * Draw a ruler in any unit, labelled as densely as can be read.
   *
   * @param {CanvasRenderingContext2D} g
   * @param {[number, number]} place top and height in pixels
   * @param {object} colours
   * @param {{unit: number, label: string, steps: number[], format: (value: number, step: number) => string}} ruler
   *   `unit` in seconds, `steps` between labels in units
   */
  drawRuler(g, [top, height], colours, { unit, label, steps, format }) {
    const unitPixels = (unit * this.span) / this.duration;
    const step = steps.find((candidate) => candidate * unitPixels >= LABEL_WIDTH) ?? steps.at(-1);
    g.fillStyle = colours.soft;
    g.strokeStyle = colours.line;
    g.lineWidth = 1;
    g.textBaseline = "middle";
    g.textAlign = "right";
    g.fillText(label, GUTTER - 6, top + height / 2);
    g.textAlign = "left";
    g.beginPath();
    // Labelled ticks; the small number keeps a tick that lies exactly at the left edge.
    const first = Math.ceil(this.view[0] / unit / step - 1e-9);
    const isEmpty = this.x(first * step * unit) > this.right;
    if (isEmpty) g.fillText(format(Math.floor(this.view[0] / unit), step), GUTTER + 3, top + height / 2); // one fills all
    for (let k = first; this.x(k * step * unit) <= this.right + 0.5; k++) {
      const x = Math.round(this.x(k * step * unit)) + 0.5;
      g.moveTo(x, top + 3);
      g.lineTo(x, top + height - 1);
      const text = format(k * step, step);
      if (x + 3 + g.measureText(text).width < this.width) g.fillText(text, x + 3, top + height / 2);
    }
    // A short tick for every frame or token, once they are far enough apart.
    if (unitPixels >= 5 && unit !== 1) {
      for (let k = Math.ceil(this.view[0] / unit); this.x(k * unit) <= this.right; k++) {
        const x = Math.round(this.x(k * unit)) + 0.5;
        g.moveTo(x, top);
        g.lineTo(x, top + 3);
      }
    }
    g.stroke();
  }
}

/** @param {number} value seconds @param {number} step seconds between labels @returns {string} */
function formatRulerSecond(value, step) {
  return value.toFixed(Math.max(0, Math.ceil(-Math.log10(step) - 1e-9)));
}
