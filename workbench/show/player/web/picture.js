/*
The picture: the rows of one trace or of all, below one another, over one time axis, and the overview of the whole.
The base canvas holds what changes with the view, the overlay the cursor and the loop, which change many times a
second. The colours stand in player.css, for light and for dark pages; a canvas reads them from there.
*/

const LANE_GAP = 4; // pixels below a lane
const RULER = 18; // pixels
const OVERVIEW = 36; // pixels
const NAME = 17; // pixels of a stacked trace's name

class Picture {
  /**
   * @param {HTMLCanvasElement} base
   * @param {HTMLCanvasElement} overlay
   * @param {PlayerData} data
   * @param {() => void} redraw
   */
  constructor(base, overlay, data, redraw) {
    this.base = base;
    this.overlay = overlay;
    this.data = data;
    this.axis = new TimeAxis(data.length, data.maxRate);
    this.computed = new Computed(data, redraw);
    this.rows = new Set(["wave", "findings", "mel", "f0", "tokens"]);
    this.gain = 1; // of the waveform's height; never of its sound
    this.lanes = []; // {trace, row, top, height}
    this.overviews = new Map(); // trace -> {width, peaks}
    let maxF0 = 100; // Hz, the least range of the axis
    for (const trace of data.traces) for (const hz of trace.f0) maxF0 = Math.max(maxF0, hz);
    this.f0Top = Math.min(maxF0 * 1.1, MAX_F0);
  }

  /** @param {string} row @returns {boolean} whether any trace has it */
  has(row) {
    const traces = this.data.traces;
    if (row === "difference") return traces.length > 1;
    if (row === "f0" || row === "tokens" || row === "findings") return traces.some((trace) => trace[row].length > 0);
    return true;
  }

  /** Place the lanes. @param {Trace[]} traces */
  layout(traces) {
    const isStacked = traces.length > 1;
    let top = RULER;
    this.lanes = [];
    const add = (trace, row, height, gap = LANE_GAP) => {
      this.lanes.push({ trace, row, top, height });
      top += height + gap;
    };
    for (const trace of traces) {
      if (isStacked) add(trace, "name", NAME, 0);
      for (const { name, heights } of ROWS) {
        if (!this.rows.has(name) || !this.has(name)) continue;
        if (isStacked && (name === "findings" || name === "tokens" || name === "f0") && !trace[name].length) continue;
        const height = name === "findings" ? Math.max(trace.laneKinds.length, 1) * FINDING_LANE : heights[isStacked ? 1 : 0];
        add(trace, name, height);
      }
    }
    this.bottom = top;
    this.height = top + 2 * 16 + OVERVIEW + 2 * LANE_GAP; // two rulers
  }

  /** @param {Trace[]} traces @returns {number} pixels that their picture takes */
  heightOf(traces) {
    this.layout(traces);
    return this.height;
  }

  /** Top of the overview in pixels. */
  get overviewTop() {
    return this.height - OVERVIEW - LANE_GAP;
  }

  /** @param {number} y pixels @returns {"ruler"|"rows"|"overview"} */
  zoneAt(y) {
    if (y >= this.overviewTop) return "overview";
    return y < RULER || y > this.bottom ? "ruler" : "rows";
  }

  /** @param {number} y pixels @returns {Trace|undefined} whose lane that is */
  traceAt(y) {
    return this.lanes.find((lane) => y >= lane.top && y < lane.top + lane.height)?.trace;
  }

  /** Fit both canvases to the picture and the resolution of the screen or of paper. */
  resize() {
    const ratio = this.ratio ?? (window.devicePixelRatio || 1);
    for (const canvas of [this.base, this.overlay]) {
      const size = [Math.round(this.axis.width * ratio), Math.round(this.height * ratio)];
      canvas.style.aspectRatio = `${this.axis.width} / ${this.height}`;
      if (canvas.width !== size[0] || canvas.height !== size[1]) [canvas.width, canvas.height] = size;
      canvas.getContext("2d").setTransform(ratio, 0, 0, ratio, 0, 0);
    }
  }

  // ---- the base canvas

  /**
   * @param {Trace[]} traces that are shown
   * @param {Trace|null} heard null hides the picture, for a blind test
   * @param {number} chosen index of a finding of the trace that is heard, or -1
   */
  draw(traces, heard, chosen) {
    this.layout(traces);
    this.resize();
    const { axis, colours } = this;
    const g = this.base.getContext("2d");
    g.fillStyle = colours.back;
    g.fillRect(0, 0, axis.width, this.height);
    g.font = "10.5px system-ui, sans-serif";
    const { frame_seconds, token_seconds } = this.data;
    const rulers = [
      [0, RULER, { unit: 1, label: "s", steps: SECOND_STEPS, format: formatRulerSecond }],
      [this.bottom, 16, { unit: frame_seconds, label: "frame", steps: COUNT_STEPS, format: String }],
      [this.bottom + 16, 16, { unit: token_seconds, label: "token", steps: COUNT_STEPS, format: String }],
    ];
    for (const [top, height, ruler] of rulers) axis.drawRuler(g, [top, height], colours, ruler);
    if (!heard) {
      this.drawHidden(g);
      return;
    }
    for (const lane of this.lanes) this.drawLane(g, lane, heard, chosen);
    this.drawOverview(g, heard);
  }

  drawLane(g, { trace, row, top, height }, heard, chosen) {
    const { axis, colours } = this;
    const lane = { g, axis, colours, data: this.data, top, height, gain: this.gain };
    if (row === "name") {
      this.drawName(g, trace, top, trace === heard);
      return;
    }
    g.save();
    g.beginPath();
    g.rect(GUTTER, top, axis.span, height);
    g.clip();
    if (row !== "findings" && row !== "tokens") {
      g.fillStyle = colours.panel;
      g.fillRect(GUTTER, top, axis.span, height);
    }
    if (row === "wave") drawWave(lane, trace);
    else if (row === "findings") drawFindings(lane, trace, (kind) => this.kindColour(kind), trace === heard ? chosen : -1);
    else if (row === "difference") drawDifference(lane, trace, this.computed.difference(trace));
    else if (row === "spectrogram") this.computed.drawSpectrogram(lane, trace);
    else if (row === "mel") drawMel(lane, trace);
    else if (row === "f0") drawF0(lane, trace, this.f0Top);
    else if (row === "tokens") drawTokens(lane, trace);
    g.restore();
    this.drawScale(g, trace, row, top, height);
  }

  drawName(g, trace, top, isHeard) {
    g.textAlign = "left";
    g.textBaseline = "middle";
    g.font = `${isHeard ? "600 " : ""}11.5px system-ui, sans-serif`;
    g.fillStyle = this.colours.ink;
    const letter = letterOf(this.data.traces.indexOf(trace));
    g.fillText(`${letter} \u00b7 ${trace.name}${isHeard ? " \u00b7 heard" : ""}`, GUTTER, top + NAME / 2, this.axis.span);
    g.font = "10.5px system-ui, sans-serif";
  }

  /** Label the vertical axis of a row. */
  drawScale(g, trace, row, top, height) {
    const label = (text, y) => g.fillText(text, GUTTER - 6, clamp(y, top + 6, top + height - 6), GUTTER - 8);
    g.textAlign = "right";
    g.textBaseline = "middle";
    g.font = "10.5px system-ui, sans-serif";
    g.fillStyle = this.colours.soft;
    if (row === "wave") {
      label(`+${1 / this.gain}`, 0);
      label("0", top + height / 2);
      label(`\u2212${1 / this.gain}`, Infinity);
    } else if (row === "difference") {
      const { samples, scale } = this.computed.difference(trace);
      label(samples ? `\u00b1${scale.toPrecision(2)}` : "diff", 0);
    } else if (row === "spectrogram") {
      const top_kHz = trace.rate / 2000;
      label(`${top_kHz} k`, 0);
      label(`${top_kHz / 2} k`, top + height / 2);
      label("0 Hz", Infinity);
    } else if (row === "mel") {
      for (const [bin, text] of this.data.ticks) label(text, top + height * (1 - (bin + 0.5) / this.data.bins));
    } else if (row === "f0") {
      label(`${Math.round(this.f0Top)} Hz`, 0);
      label("f0", top + height / 2);
      label("0", Infinity);
    } else if (row === "tokens") {
      label("id", top + 8);
      label("text", top + 24);
    } else this.drawKinds(g, trace, top);
  }

  /** Name the lanes of findings. */
  drawKinds(g, trace, top) {
    g.font = "9px system-ui, sans-serif";
    trace.laneKinds.forEach((kind, lane) => {
      if (trace.laneKinds.indexOf(kind) !== lane) return; // the first of its kind
      g.fillStyle = this.kindColour(kind);
      g.fillText(kind, GUTTER - 4, top + (lane + 0.5) * FINDING_LANE, GUTTER - 6);
    });
  }

  /** @param {string} kind of a finding @returns {string} */
  kindColour(kind) {
    return this.colours.kinds[this.data.kinds.indexOf(kind) % this.colours.kinds.length];
  }

  /** Cover the lanes during a blind test. */
  drawHidden(g) {
    g.fillStyle = this.colours.panel;
    g.fillRect(GUTTER, RULER, this.axis.span, this.bottom - RULER - LANE_GAP);
    drawNote(
      { g, axis: this.axis, colours: this.colours, top: RULER, height: this.bottom - RULER },
      "X is heard: its picture is hidden until the trial is over.",
    );
  }

  // ---- the overview

  /** @param {number} x pixels @returns {number} seconds of the whole */
  overviewTime(x) {
    return clamp((x - GUTTER) / this.axis.span, 0, 1) * this.data.length;
  }

  overviewX(t) {
    return GUTTER + (t / this.data.length) * this.axis.span;
  }

  /** Largest magnitude of every pixel of the overview, 0 to 1. @param {Trace} trace @returns {Float32Array} */
  peaks(trace) {
    const width = Math.floor(this.axis.span);
    const kept = this.overviews.get(trace);
    if (kept?.width === width) return kept.peaks;
    const peaks = new Float32Array(width);
    const perPixel = (this.data.length * trace.rate) / width;
    for (let i = 0; i < trace.samples.length; i++) {
      const x = Math.min(Math.floor(i / perPixel), width - 1);
      peaks[x] = Math.max(peaks[x], Math.abs(trace.samples[i]) / FULL_SCALE);
    }
    this.overviews.set(trace, { width, peaks });
    return peaks;
  }

  drawOverview(g, trace) {
    const { axis, colours } = this;
    const top = this.overviewTop;
    g.fillStyle = colours.panel;
    g.fillRect(GUTTER, top, axis.span, OVERVIEW);
    g.fillStyle = colours.soft;
    g.textAlign = "right";
    g.font = "10.5px system-ui, sans-serif";
    g.fillText("whole", GUTTER - 6, top + OVERVIEW / 2);
    const middle = top + OVERVIEW / 2 - 2;
    this.peaks(trace).forEach((peak, x) => {
      const half = Math.max(peak * (OVERVIEW / 2 - 4), 0.5);
      g.fillRect(GUTTER + x, middle - half, 1, 2 * half);
    });
    for (const finding of trace.findings) {
      g.fillStyle = this.kindColour(finding.kind);
      const left = this.overviewX(finding.start);
      g.fillRect(left, top + OVERVIEW - 4, Math.max(this.overviewX(finding.end) - left, 2), 4);
    }
    const [left, right] = axis.view.map((t) => this.overviewX(t));
    g.fillStyle = colours.loop;
    if (axis.isZoomed) g.fillRect(left, top, Math.max(right - left, 2), OVERVIEW);
    g.strokeStyle = colours.edge;
    g.lineWidth = 1.5;
    g.strokeRect(left + 0.75, top + 0.75, Math.max(right - left - 1.5, 2), OVERVIEW - 1.5);
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
    const { axis, colours } = this;
    const g = this.overlay.getContext("2d");
    const bottom = this.bottom - LANE_GAP;
    g.clearRect(0, 0, axis.width, this.height);
    g.fillStyle = colours.cursor;
    g.fillRect(this.overviewX(position) - 0.5, this.overviewTop, 1, OVERVIEW);
    g.save();
    g.beginPath();
    g.rect(GUTTER - 5, 0, axis.span + 10, this.overviewTop);
    g.clip();
    if (region) {
      const [left, right] = region.map((t) => axis.x(t));
      g.fillStyle = colours.loop;
      if (filled) g.fillRect(left, 0, right - left, bottom);
      g.fillStyle = colours.edge;
      g.fillRect(left, 0, right - left, 3);
      g.fillRect(left - 0.5, 0, 1, bottom);
      g.fillRect(right - 0.5, 0, 1, bottom);
    }
    if (pointer !== null) {
      g.fillStyle = colours.soft;
      g.fillRect(axis.x(pointer) - 0.25, RULER, 0.5, bottom - RULER);
    }
    // A vertical line with a triangle at its head.
    const x = axis.x(position);
    g.fillStyle = colours.cursor;
    g.fillRect(x - 0.75, RULER - 2, 1.5, bottom + 32 - RULER);
    g.beginPath();
    g.moveTo(x - 4.5, RULER - 8);
    g.lineTo(x + 4.5, RULER - 8);
    g.lineTo(x, RULER - 1);
    g.fill();
    g.restore();
  }
}

// ---- colours

const COLOUR_NAMES = ["back", "panel", "ink", "soft", "line", "wave", "f0", "cursor", "loop", "edge", "difference", "clip"];
const KIND_COLOURS = 6; // of findings, --kind-0 and so on

/**
 * @param {HTMLElement} element with the custom properties of player.css
 * @returns {Object<string, string> & {kinds: string[]}}
 */
function readColours(element) {
  const style = getComputedStyle(element);
  const colours = Object.fromEntries(COLOUR_NAMES.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
  colours.kinds = Array.from({ length: KIND_COLOURS }, (_, i) => style.getPropertyValue(`--kind-${i}`).trim());
  return colours;
}

/**
 * Return whether the page is dark behind the player: by the background of the nearest element that has one, else
 * by the user's preference.
 *
 * @param {Element} host
 * @returns {boolean}
 */
function isDark(host) {
  // A canvas of one pixel reads colours in any notation of CSS.
  const pixel = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  for (let node = host; node instanceof Element; node = node.parentElement ?? node.getRootNode().host) {
    pixel.clearRect(0, 0, 1, 1);
    pixel.fillStyle = getComputedStyle(node).backgroundColor;
    pixel.fillRect(0, 0, 1, 1);
    const [red, green, blue, alpha] = pixel.getImageData(0, 0, 1, 1).data;
    const isOpaque = alpha > 127; // half of 255
    if (isOpaque) return 0.3 * red + 0.6 * green + 0.1 * blue < 128; // luma below half
  }
  return matchMedia("(prefers-color-scheme: dark)").matches;
}
