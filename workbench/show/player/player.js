/*
The player's page side: one ES module, without a build step and without any address outside.

`mount(host, data, model)` draws a player into a shadow root of `host`, so that neither the page's styles nor
another player on it can reach in. What `data` holds stands in player.py. `model` is the widget's, or null on a
page without kernel. Names and kinds come from anywhere, so they become text, never markup.
*/

const FRAME = 0.02; // seconds of a mel frame
const TOKEN = 0.04; // seconds of a speech token
const FADE = 0.005; // seconds of a cross-fade: shorter clicks, longer smears what is compared
const AROUND = 0.3; // seconds looped on either side of a finding
const LEAST_LOOP = 0.02; // seconds; a shorter one is a tone
const DRAG = 4; // pixels that a click may wander
const GUTTER = 46; // pixels left of the time axis, for the other axes
const MARGIN = 10; // pixels right of it
const LANES = { ruler: 18, wave: 88, marks: 12, mel: 124, f0: 60, frames: 16, tokens: 16 };
const STARTED = "workbench-player-started";

const LIGHT = {
  back: "#ffffff", panel: "#f6f7f9", ink: "#1d222b", soft: "#555d6b", line: "#d5d9e0", wave: "#2b62a8", f0: "#0b756f",
  cursor: "#c4321c", loop: "rgba(26, 95, 208, 0.16)", edge: "#1a5fd0", kinds: ["#b3261e", "#8a5a00", "#6b3fa0", "#00695c", "#9c2a6b", "#37517e"],
};
const DARK = {
  back: "#14161a", panel: "#1c1f25", ink: "#e7e9ed", soft: "#a9b0bd", line: "#363b46", wave: "#7fb0ea", f0: "#55cfc4",
  cursor: "#ff8a73", loop: "rgba(122, 176, 255, 0.22)", edge: "#7ab0ff", kinds: ["#ff8f85", "#f0b64e", "#c6a4f5", "#5fd3c0", "#f08cc0", "#9db8e8"],
};

const STYLE = `
:host { display: block; max-width: 1100px; margin: 6px 0; }
.player { font: 12px/1.4 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; color: var(--ink); background: var(--back);
  border: 1px solid var(--line); border-radius: 6px; overflow: hidden; font-variant-numeric: tabular-nums; }
.bar, .foot, .findings { display: flex; flex-wrap: wrap; align-items: center; gap: 4px 10px; padding: 5px 8px; background: var(--panel); }
.bar { border-bottom: 1px solid var(--line); }
.foot, .findings { border-top: 1px solid var(--line); color: var(--soft); }
.foot { justify-content: space-between; }
.group { display: flex; gap: 3px; align-items: center; min-width: 0; }
.group.choices { flex: 1 1 auto; flex-wrap: wrap; }
button { font: inherit; color: var(--ink); background: var(--back); border: 1px solid var(--line); border-radius: 4px;
  padding: 2px 8px; min-height: 26px; min-width: 28px; cursor: pointer; white-space: nowrap; }
button:hover { border-color: var(--soft); }
button[aria-pressed="true"] { background: var(--edge); border-color: var(--edge); color: var(--back); }
button.name { max-width: 22em; overflow: hidden; text-overflow: ellipsis; }
button.play { width: 34px; padding: 0; display: grid; place-items: center; }
button:focus-visible, canvas:focus-visible, summary:focus-visible { outline: 2px solid var(--edge); outline-offset: 1px; }
canvas:focus-visible { outline-offset: -2px; }
svg { width: 12px; height: 12px; fill: currentColor; }
.time { font-size: 14px; min-width: 9.5em; }
.time b { font-weight: 600; }
.stage { position: relative; background: var(--back); line-height: 0; }
.stage canvas { display: block; width: 100%; }
.stage .over { position: absolute; inset: 0; height: 100%; cursor: crosshair; touch-action: pan-y; }
.chips { display: flex; gap: 3px; overflow-x: auto; flex: 1 1 0; min-width: 12em; padding: 2px; }
.chips > * { flex: none; }
.chips button { border-left-width: 4px; }
.warn { margin: 0; padding: 5px 8px; background: var(--panel); border-bottom: 1px solid var(--line); color: var(--ink); list-style: none; }
.warn li::before { content: "\\26a0\\fe0e  "; color: var(--cursor); }
.sr { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
summary { cursor: pointer; }
kbd { font: inherit; color: var(--ink); border: 1px solid var(--line); border-radius: 3px; padding: 0 4px; }
details p { margin: 4px 0 0; line-height: 1.9; }
details[open] { flex-basis: 100%; }
[hidden] { display: none !important; }
@media print { .group.tools, details, .chips { display: none; } .player { break-inside: avoid; } }
`;

const PLAY = '<svg viewBox="0 0 12 12" aria-hidden="true"><path d="M2 0.5v11l9.5-5.5z"/></svg>';
const PAUSE = '<svg viewBox="0 0 12 12" aria-hidden="true"><path d="M1.5 0.5h3.2v11H1.5zM7.3 0.5h3.2v11H7.3z"/></svg>';
const SKELETON = `
<div class="player" role="group">
  <div class="bar">
    <button class="play" data-do="play"></button>
    <span class="time"><b></b> <span class="of"></span></span>
    <span class="group choices" role="group" aria-label="Trace heard"></span>
    <span class="group tools" role="group" aria-label="View and loop">
      <button data-do="loop" aria-pressed="false" title="Loop on or off (l); drag over the picture to set it">loop</button>
      <button data-do="height" title="Height of the waveform's picture; never changes the sound"></button>
      <button data-do="out" aria-label="Zoom out" title="Zoom out (-)">&minus;</button>
      <button data-do="in" aria-label="Zoom in" title="Zoom in (+)">+</button>
      <button data-do="fit" title="Show the whole (0)">fit</button>
    </span>
  </div>
  <ul class="warn" hidden></ul>
  <div class="stage">
    <canvas class="base" role="img"></canvas>
    <canvas class="over" role="slider" tabindex="0" aria-label="Position in seconds" aria-valuemin="0"></canvas>
  </div>
  <div class="findings" hidden>
    <span class="group" role="group" aria-label="Step through findings">
      <button data-do="previous" aria-label="Previous finding" title="Previous finding (p)">&lsaquo;</button>
      <button data-do="next" aria-label="Next finding" title="Next finding (n)">&rsaquo;</button>
    </span>
    <span class="count"></span>
    <span class="chips" role="group" aria-label="Findings"></span>
  </div>
  <div class="foot">
    <span class="levels"></span>
    <span class="pointer"></span>
    <details><summary>Keys</summary><p>
      <kbd>space</kbd> play or pause &ensp; <kbd>&larr;</kbd> <kbd>&rarr;</kbd> one token, with <kbd>shift</kbd> half a second &ensp;
      <kbd>1</kbd>&ndash;<kbd>9</kbd> trace &ensp; <kbd>x</kbd> blind &ensp; <kbd>[</kbd> <kbd>]</kbd> loop from here, to here &ensp;
      <kbd>l</kbd> loop on or off &ensp; <kbd>n</kbd> <kbd>p</kbd> finding &ensp; <kbd>+</kbd> <kbd>&minus;</kbd> <kbd>0</kbd> zoom &ensp;
      <kbd>esc</kbd> no loop &ensp; click to seek, drag to loop, ctrl-wheel to zoom
    </p></details>
  </div>
  <div class="sr" role="status"></div>
</div>`;

const clamp = (x, low, high) => Math.min(Math.max(x, low), high);
const letter = (index) => String.fromCharCode(65 + index);
const seconds = (t) => t.toFixed(3);
const tenth = (x) => (x < 0 ? "\u2212" : "") + Math.abs(x).toFixed(1);
const decibel = (x) => `${x === null ? "\u2212\u221e" : tenth(x)} dB`;

function bytesOf(address) {
  const text = atob(address.slice(address.indexOf(",") + 1));
  return Uint8Array.from(text, (c) => c.charCodeAt(0)).buffer;
}

const samplesOf = (wav) => new Int16Array(wav, 44); // player.py writes the plain header of 44 bytes

/** All traces at once from one clock, all but one of them silent: so a change of trace has no gap. */
class Sound {
  constructor(traces, length) {
    Object.assign(this, { traces, length, heard: 0, rest: 0, group: null, onend: () => {} });
  }

  /** Decode at the traces' own rate: the browser resamples what leaves the context, better than inside of it. */
  async open() {
    const sampleRate = Math.max(...this.traces.map((trace) => trace.rate));
    const context = new AudioContext({ sampleRate });
    const decoded = await Promise.all(this.traces.map((trace) => context.decodeAudioData(trace.bytes.slice(0))));
    this.buffers = decoded.map((short) => {
      const buffer = context.createBuffer(1, Math.ceil(this.length * sampleRate) + 1, sampleRate);
      buffer.copyToChannel(short.getChannelData(0), 0);
      return buffer;
    });
    this.context = context;
  }

  async prepare() {
    await (this.ready ??= this.open());
    await this.context.resume();
  }

  start(from, loop) {
    this.stop();
    const { context } = this;
    const when = context.currentTime + 0.01;
    const master = new GainNode(context, { gain: 0 });
    master.gain.setValueAtTime(0, when);
    master.gain.linearRampToValueAtTime(1, when + FADE);
    master.connect(context.destination);
    const group = { when, from, loop, master };
    group.gains = this.traces.map((trace, i) => new GainNode(context, { gain: i === this.heard ? trace.gain : 0 }));
    group.sources = this.buffers.map((whole, i) => {
      const buffer = loop ? this.cut(whole, loop) : whole;
      const source = new AudioBufferSourceNode(context, { buffer, loop: Boolean(loop) });
      source.connect(group.gains[i]).connect(master);
      source.start(when, loop ? from - loop[0] : from);
      return source;
    });
    group.sources[0].onended = () => {
      if (this.group !== group) return;
      Object.assign(this, { group: null, rest: this.length });
      this.onend();
    };
    this.group = group;
  }

  /** The loop by itself with its ends faded, or its seam would click like the fault that is looked for. */
  cut(whole, [start, end]) {
    const rate = whole.sampleRate;
    const part = whole.getChannelData(0).slice(Math.round(start * rate), Math.round(end * rate));
    const fade = Math.min(Math.round(FADE * rate), part.length >> 1);
    for (let i = 0; i < fade; i++) {
      part[i] *= i / fade;
      part[part.length - 1 - i] *= i / fade;
    }
    const buffer = this.context.createBuffer(1, part.length, rate);
    buffer.copyToChannel(part, 0);
    return buffer;
  }

  stop() {
    if (!this.group) return;
    this.rest = this.position;
    const { master, sources } = this.group;
    const now = this.context.currentTime;
    master.gain.cancelScheduledValues(now);
    master.gain.setValueAtTime(master.gain.value, now);
    master.gain.linearRampToValueAtTime(0, now + 0.01 + FADE);
    sources.forEach((source) => source.stop(now + 0.01 + FADE));
    this.group = null;
  }

  choose(index) {
    this.heard = index;
    if (!this.group) return;
    const now = this.context.currentTime;
    this.group.gains.forEach(({ gain }, i) => {
      gain.cancelScheduledValues(now);
      gain.setValueAtTime(gain.value, now);
      gain.linearRampToValueAtTime(i === index ? this.traces[i].gain : 0, now + FADE);
    });
  }

  /** Where the ear is: the clock of what was handed over, less the way to the loudspeaker. */
  get position() {
    if (!this.group) return this.rest;
    const { when, from, loop } = this.group;
    const gone = Math.max(0, this.context.currentTime - when - (this.context.outputLatency || 0));
    if (!loop) return Math.min(from + gone, this.length);
    return loop[0] + ((from - loop[0] + gone) % (loop[1] - loop[0]));
  }

  close() {
    this.stop();
    this.ready?.then(() => this.context.close());
  }
}

/** The picture: lanes one below the other over one time axis. */
class Picture {
  constructor(base, over, data) {
    Object.assign(this, { base, over, data, view: [0, data.length], height: 1, colours: LIGHT });
    const marks = data.traces.some((trace) => trace.findings.length);
    const f0 = data.traces.some((trace) => trace.f0.length);
    const shown = Object.entries(LANES).filter(([name]) => (name !== "marks" || marks) && (name !== "f0" || f0));
    this.lanes = {};
    this.total = 0;
    for (const [name, size] of shown) {
      this.lanes[name] = [this.total, size];
      this.total += size + (name === "ruler" || name === "frames" ? 0 : 4);
    }
    const voiced = data.traces.flatMap((trace) => trace.f0).filter((hz) => hz > 0);
    this.f0Top = voiced.reduce((most, hz) => Math.max(most, hz), 100) * 1.1;
  }

  resize() {
    this.width = Math.max(this.base.clientWidth, 200);
    const ratio = window.devicePixelRatio || 1;
    for (const canvas of [this.base, this.over]) {
      canvas.style.height = `${this.total}px`;
      canvas.width = Math.round(this.width * ratio);
      canvas.height = Math.round(this.total * ratio);
      canvas.getContext("2d").setTransform(ratio, 0, 0, ratio, 0, 0);
    }
  }

  get span() {
    return this.width - GUTTER - MARGIN;
  }

  x(t) {
    return GUTTER + ((t - this.view[0]) / (this.view[1] - this.view[0])) * this.span;
  }

  t(x) {
    return clamp(this.view[0] + ((x - GUTTER) / this.span) * (this.view[1] - this.view[0]), 0, this.data.length);
  }

  /** Show `wide` seconds so that `t` stays where it is in the view. */
  zoom(wide, t) {
    const [start, end] = this.view;
    wide = clamp(wide, Math.min(0.1, this.data.length), this.data.length);
    const left = clamp(t - ((t - start) / (end - start)) * wide, 0, this.data.length - wide);
    this.view = [left, left + wide];
  }

  pan(by) {
    const wide = this.view[1] - this.view[0];
    const left = clamp(this.view[0] + by, 0, this.data.length - wide);
    this.view = [left, left + wide];
  }

  draw(trace, colours) {
    this.colours = colours;
    const g = this.base.getContext("2d");
    g.fillStyle = colours.back;
    g.fillRect(0, 0, this.width, this.total);
    g.font = "10.5px system-ui, sans-serif";
    this.scale(g, "ruler", 1, "s", (n, step) => n.toFixed(step < 0.1 ? 2 : step < 1 ? 1 : 0));
    this.scale(g, "frames", FRAME, "frame", String);
    this.scale(g, "tokens", TOKEN, "token", String);
    if (!trace) return this.blind(g);
    this.lane(g, "wave", () => this.wave(g, trace));
    this.lane(g, "mel", () => this.mel(g, trace));
    if (this.lanes.f0) this.lane(g, "f0", () => this.f0(g, trace));
    if (this.lanes.marks) this.lane(g, "marks", () => this.marks(g, trace));
    this.axes(g);
  }

  lane(g, name, paint) {
    const [top, size] = this.lanes[name];
    g.save();
    g.beginPath();
    g.rect(GUTTER, top, this.span, size);
    g.clip();
    paint();
    g.restore();
  }

  /** A ruler in any unit, labelled as densely as can be read. */
  scale(g, name, unit, label, text) {
    const [top, size] = this.lanes[name];
    const pixels = (unit * this.span) / (this.view[1] - this.view[0]);
    const steps = unit === 1 ? [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10] : [1, 2, 5, 10, 25, 50, 100, 250, 500, 1000];
    const step = steps.find((s) => s * pixels >= 46) ?? steps.at(-1);
    g.fillStyle = this.colours.soft;
    g.strokeStyle = this.colours.line;
    g.textBaseline = "middle";
    g.textAlign = "right";
    g.fillText(label, GUTTER - 6, top + size / 2);
    g.textAlign = "left";
    const first = Math.ceil(this.view[0] / unit / step - 1e-9);
    g.beginPath();
    for (let k = first; this.x(k * step * unit) <= this.width - MARGIN + 0.5; k++) {
      const x = Math.round(this.x(k * step * unit)) + 0.5;
      g.moveTo(x, top + 3);
      g.lineTo(x, top + size - 1);
      if (x < this.width - 26) g.fillText(text(k * step, step), x + 3, top + size / 2);
    }
    if (pixels >= 5 && unit !== 1) {
      for (let k = Math.ceil(this.view[0] / unit); this.x(k * unit) <= this.width - MARGIN; k++) {
        const x = Math.round(this.x(k * unit)) + 0.5;
        g.moveTo(x, top);
        g.lineTo(x, top + 3);
      }
    }
    g.stroke();
  }

  wave(g, trace) {
    const [top, size] = this.lanes.wave;
    const half = size / 2, middle = top + half;
    g.fillStyle = this.colours.panel;
    g.fillRect(GUTTER, top, this.span, size);
    g.strokeStyle = this.colours.line;
    g.beginPath();
    g.moveTo(GUTTER, middle + 0.5);
    g.lineTo(this.width, middle + 0.5);
    g.stroke();
    const y = (sample) => middle - clamp((sample / 32768) * this.height, -1, 1) * (half - 1);
    const { samples, rate } = trace;
    g.strokeStyle = g.fillStyle = this.colours.wave;
    if (((this.view[1] - this.view[0]) * rate) / this.span < 3) {
      g.beginPath();
      const last = Math.min(Math.ceil(this.view[1] * rate), samples.length - 1);
      for (let i = Math.floor(this.view[0] * rate); i <= last; i++) g.lineTo(this.x(i / rate), y(samples[i]));
      g.stroke();
      return;
    }
    const column = 1 / (window.devicePixelRatio || 1);
    for (let x = GUTTER; x < this.width - MARGIN; x += column) {
      const start = Math.floor(this.t(x) * rate), end = Math.min(Math.ceil(this.t(x + column) * rate), samples.length);
      let low = 32767, high = -32768;
      for (let i = start; i < end; i++) {
        if (samples[i] < low) low = samples[i];
        if (samples[i] > high) high = samples[i];
      }
      if (end > start) g.fillRect(x, y(high), column, Math.max(y(low) - y(high), 1));
    }
  }

  mel(g, trace) {
    const [top, size] = this.lanes.mel;
    g.fillStyle = this.colours.panel;
    g.fillRect(GUTTER, top, this.span, size);
    g.imageSmoothingEnabled = this.x(FRAME) - this.x(0) < 3; // one frame a block once it can be seen
    const picture = trace.picture;
    g.drawImage(picture, this.x(0), top, this.x(picture.naturalWidth * FRAME) - this.x(0), size);
  }

  f0(g, trace) {
    const [top, size] = this.lanes.f0;
    g.fillStyle = this.colours.panel;
    g.fillRect(GUTTER, top, this.span, size);
    g.strokeStyle = g.fillStyle = this.colours.f0;
    g.lineWidth = 1.5;
    g.beginPath();
    let before = false;
    trace.f0.forEach((hz, frame) => {
      const x = this.x((frame + 0.5) * FRAME), y = top + size - (hz / this.f0Top) * size;
      if (hz > 0 && before) g.lineTo(x, y);
      else if (hz > 0) g.moveTo(x, y), g.fillRect(x - 0.75, y - 0.75, 1.5, 1.5);
      before = hz > 0;
    });
    g.stroke();
  }

  marks(g, trace) {
    const [top, size] = this.lanes.marks;
    for (const found of trace.findings) {
      g.fillStyle = this.colours.kinds[this.data.kinds.indexOf(found.kind) % this.colours.kinds.length];
      const wide = Math.max(this.x(found.end) - this.x(found.start), 3);
      g.fillRect((this.x(found.start) + this.x(found.end) - wide) / 2, top + 2, wide, size - 3);
    }
  }

  axes(g) {
    const { wave, mel, f0 } = this.lanes;
    g.textAlign = "right";
    const put = (text, y, [top, size]) => g.fillText(text, GUTTER - 6, clamp(y, top + 6, top + size - 6));
    g.fillStyle = this.colours.soft;
    const edge = String(1 / this.height);
    put(`+${edge}`, 0, wave);
    put("0", wave[0] + wave[1] / 2, wave);
    put(`\u2212${edge}`, Infinity, wave);
    for (const [bin, text] of this.data.ticks) put(text, mel[0] + mel[1] * (1 - (bin + 0.5) / this.data.bins), mel);
    if (!f0) return;
    put(`${Math.round(this.f0Top)} Hz`, 0, f0);
    put("f0", f0[0] + f0[1] / 2, f0);
    put("0", Infinity, f0);
  }

  blind(g) {
    const top = this.lanes.wave[0], bottom = this.lanes.frames[0] - 4;
    g.fillStyle = this.colours.panel;
    g.fillRect(GUTTER, top, this.span, bottom - top);
    g.fillStyle = this.colours.soft;
    g.textAlign = "center";
    g.font = "13px system-ui, sans-serif";
    g.fillText("X is A or B. The picture is hidden until it is revealed.", GUTTER + this.span / 2, (top + bottom) / 2);
  }

  cursor(position, pointer, loop, looping) {
    const g = this.over.getContext("2d");
    g.clearRect(0, 0, this.width, this.total);
    const top = this.lanes.ruler[1], bottom = this.lanes.frames[0];
    g.save();
    g.beginPath();
    g.rect(GUTTER - 5, 0, this.span + 10, this.total);
    g.clip();
    if (loop) {
      const [left, right] = loop.map((t) => this.x(t));
      g.fillStyle = this.colours.loop;
      if (looping) g.fillRect(left, 0, right - left, bottom);
      g.fillStyle = this.colours.edge;
      g.fillRect(left, 0, right - left, 3);
      g.fillRect(left - 0.5, 0, 1, bottom);
      g.fillRect(right - 0.5, 0, 1, bottom);
    }
    if (pointer !== null) {
      g.fillStyle = this.colours.soft;
      g.fillRect(this.x(pointer) - 0.25, top, 0.5, bottom - top);
    }
    const x = this.x(position);
    g.fillStyle = this.colours.cursor;
    g.fillRect(x - 0.75, top - 2, 1.5, this.total - top + 2);
    g.beginPath();
    g.moveTo(x - 4.5, top - 8);
    g.lineTo(x + 4.5, top - 8);
    g.lineTo(x, top - 1);
    g.fill();
    g.restore();
  }
}

/** Whether the page is dark where the player stands: its own background if it has one, else the reader's wish. */
function isDark(host) {
  const pixel = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true }); // reads colours in any notation
  for (let node = host; node instanceof Element; node = node.parentElement ?? node.getRootNode().host) {
    pixel.clearRect(0, 0, 1, 1);
    pixel.fillStyle = getComputedStyle(node).backgroundColor;
    pixel.fillRect(0, 0, 1, 1);
    const [red, green, blue, alpha] = pixel.getImageData(0, 0, 1, 1).data;
    if (alpha > 127) return 0.3 * red + 0.6 * green + 0.1 * blue < 128;
  }
  return matchMedia("(prefers-color-scheme: dark)").matches;
}

export function mount(host, given, model) {
  const traces = given.traces.map((trace) => {
    const bytes = bytesOf(trace.wav);
    return { ...trace, bytes, samples: samplesOf(bytes), gain: 10 ** (trace.gain_db / 20) };
  });
  const kinds = [...new Set(traces.flatMap((trace) => trace.findings.map((found) => found.kind)))];
  const data = { ...given, traces, kinds, length: Math.max(...traces.map((trace) => trace.samples.length / trace.rate)) };

  const root = host.attachShadow({ mode: "open" });
  root.innerHTML = `<style>${STYLE}</style>${SKELETON}`;
  const $ = (selector) => root.querySelector(selector);
  const over = $(".over");
  const sound = new Sound(traces, data.length);
  const picture = new Picture($(".base"), over, data);
  // `region` is the loop's last place, `looping` whether it is on; X hides which trace is heard.
  const state = { region: null, looping: false, blind: false, pointer: null, finding: -1, drag: null };
  const leaving = new AbortController();
  const on = (target, event, act, more) => target.addEventListener(event, act, { signal: leaving.signal, ...more });

  const say = (text) => ($("[role=status]").textContent = text);
  const loop = () => (state.looping ? state.region : null);
  const current = () => traces[sound.heard];

  // ---- what a person can do

  async function play() {
    if (sound.group) {
      sound.stop();
      say(`paused at ${seconds(sound.rest)} s`);
      return show();
    }
    document.dispatchEvent(new CustomEvent(STARTED, { detail: host }));
    await sound.prepare();
    if (sound.group || leaving.signal.aborted) return; // asked twice meanwhile, or gone
    if (sound.rest >= data.length - 0.001) sound.rest = 0;
    sound.start(inside(sound.rest), loop());
    say("playing");
    show();
    follow();
  }

  const inside = (t) => (loop() && (t < loop()[0] || t >= loop()[1]) ? loop()[0] : t);

  /** Go somewhere without a change of whether it plays. */
  function seek(t) {
    t = clamp(t, 0, data.length);
    if (loop() && inside(t) !== t) state.looping = false;
    sound.rest = t;
    if (sound.group) sound.start(t, loop());
    show();
  }

  function choose(index) {
    if (index >= traces.length) return;
    state.blind = false;
    state.finding = -1;
    sound.choose(index);
    say(`${letter(index)}: ${traces[index].name}`);
    redraw();
  }

  function chooseBlind() {
    if (traces.length < 2) return;
    state.blind = true;
    sound.choose(crypto.getRandomValues(new Uint8Array(1))[0] % 2);
    say("X, which is A or B");
    redraw();
  }

  function setLoop(start, end, keep) {
    const [left, right] = [clamp(Math.min(start, end), 0, data.length), clamp(Math.max(start, end), 0, data.length)];
    if (right - left < LEAST_LOOP) return;
    state.region = [left, right];
    state.looping = true;
    const at = inside(keep ? sound.position : left);
    sound.rest = at;
    if (sound.group) sound.start(at, loop());
    say(`loop from ${seconds(left)} to ${seconds(right)} s`);
    show();
  }

  function toggleLoop(wanted = !state.looping) {
    if (!state.region) return say("no loop yet: drag over the picture, or press [ and ]");
    const at = sound.position;
    state.looping = wanted;
    sound.rest = inside(at);
    if (sound.group) sound.start(sound.rest, loop());
    say(wanted ? "loop on" : "loop off");
    show();
  }

  function clearLoop() {
    if (state.looping) toggleLoop(false);
    state.region = null;
    say("no loop");
    show();
  }

  function jump(index) {
    const { findings } = current();
    if (state.blind || !findings.length) return;
    state.finding = (index + findings.length) % findings.length;
    const found = findings[state.finding];
    setLoop(found.start - AROUND, found.end + AROUND, false);
    if (loop() && (loop()[0] < picture.view[0] || loop()[1] > picture.view[1])) centre((loop()[0] + loop()[1]) / 2);
    say(`finding ${state.finding + 1} of ${findings.length}: ${found.text}`);
    redraw();
  }

  function zoom(factor, t = sound.position) {
    picture.zoom((picture.view[1] - picture.view[0]) * factor, clamp(t, ...picture.view));
    redraw();
  }

  function centre(t) {
    picture.pan(t - (picture.view[0] + picture.view[1]) / 2);
  }

  const acts = {
    play,
    loop: () => toggleLoop(),
    out: () => zoom(2),
    in: () => zoom(0.5),
    fit: () => zoom(Infinity),
    height: () => {
      picture.height = picture.height >= 16 ? 1 : picture.height * 2;
      redraw();
    },
    next: () => jump(state.finding + 1),
    previous: () => jump(state.finding < 0 ? -1 : state.finding - 1),
    reveal: () => {
      choose(sound.heard);
      say(`X was ${letter(sound.heard)}: ${current().name}`);
    },
    blind: chooseBlind,
  };
  const keys = {
    " ": play,
    ArrowLeft: (event) => seek(sound.position - (event.shiftKey ? 0.5 : TOKEN)),
    ArrowRight: (event) => seek(sound.position + (event.shiftKey ? 0.5 : TOKEN)),
    Home: () => seek(0),
    End: () => seek(data.length),
    "[": () => setLoop(sound.position, Math.max(state.region?.[1] ?? 0, sound.position + AROUND), true),
    "]": () => setLoop(Math.min(state.region?.[0] ?? Infinity, sound.position - AROUND), sound.position, true),
    l: acts.loop, x: chooseBlind, n: acts.next, p: acts.previous, Escape: clearLoop,
    "+": acts.in, "=": acts.in, "-": acts.out, 0: acts.fit,
  };
  for (let i = 0; i < 9; i++) keys[i + 1] = () => choose(i);

  on(root, "keydown", (event) => {
    const act = keys[event.key];
    const pressed = event.key === " " && event.target !== over; // a button or summary that has the focus
    if (!act || pressed || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    act(event);
  });
  on(root, "click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.dataset.trace) choose(Number(button.dataset.trace));
    else if (button.dataset.finding) jump(Number(button.dataset.finding));
    else acts[button.dataset.do]();
    if (event.detail) over.focus({ preventScroll: true }); // so that the space bar plays after a click
  });

  const timeAt = (event) => picture.t(event.clientX - over.getBoundingClientRect().left);
  on(over, "pointerdown", (event) => {
    if (event.button) return;
    over.setPointerCapture(event.pointerId);
    state.drag = { x: event.clientX, t: timeAt(event), moved: false };
  });
  on(over, "pointermove", (event) => {
    state.pointer = timeAt(event);
    if (state.drag && Math.abs(event.clientX - state.drag.x) > DRAG) state.drag.moved = true;
    show();
  });
  on(over, "pointerup", (event) => {
    const drag = state.drag;
    state.drag = null;
    if (drag?.moved) setLoop(drag.t, timeAt(event), false);
    else if (drag) seek(drag.t);
  });
  on(over, "pointercancel", () => (state.drag = null));
  on(over, "pointerleave", () => {
    state.pointer = null;
    show();
  });
  on(over, "wheel", (event) => {
    if (event.ctrlKey || event.metaKey) zoom(2 ** (event.deltaY / 200), timeAt(event));
    else if (event.deltaX) picture.pan((event.deltaX / picture.span) * (picture.view[1] - picture.view[0])), redraw();
    else return;
    event.preventDefault();
  }, { passive: false });
  on(document, STARTED, (event) => {
    if (event.detail !== host && sound.group) sound.stop(), show();
  });
  sound.onend = () => show();

  // ---- what the kernel can do

  const shared = () => ({ position: sound.position, loop: loop() ?? [], choice: state.blind ? -1 : sound.heard });
  const orders = {
    position: seek,
    loop: (ends) => (ends.length ? setLoop(...ends, true) : state.looping && toggleLoop(false)),
    choice: (index) => (index < 0 ? chooseBlind() : choose(index)),
  };
  const asked = model ? Object.keys(orders).map((name) => [name, model.get(name)]) : []; // before it was shown
  const links = Object.entries(orders).map(([name, act]) => [
    `change:${name}`,
    () => !telling && String(model.get(name)) !== String(shared()[name]) && act(model.get(name)),
  ]);

  // ---- what a person sees

  function redraw() {
    picture.draw(state.blind ? null : current(), picture.colours);
    showChoice();
    show();
  }

  function show() {
    const position = sound.position, trace = current();
    const shown = state.drag?.moved ? [state.drag.t, state.pointer].sort((a, b) => a - b) : state.region;
    picture.cursor(position, state.pointer, shown, state.looping || Boolean(state.drag?.moved));
    $(".time b").textContent = seconds(position);
    const button = $("[data-do=play]");
    if (button.dataset.playing !== String(Boolean(sound.group))) {
      button.dataset.playing = Boolean(sound.group);
      button.innerHTML = sound.group ? PAUSE : PLAY;
      button.setAttribute("aria-label", sound.group ? "Pause" : "Play");
    }
    const text = state.region ? `loop ${state.region.map((t) => t.toFixed(2)).join("\u2013")} s` : "loop";
    const looper = $("[data-do=loop]");
    if (looper.textContent !== text) looper.textContent = text;
    looper.setAttribute("aria-pressed", state.looping);
    const at = state.pointer ?? position;
    const hz = state.blind ? undefined : trace.f0[Math.floor(at / FRAME + 1e-6)];
    $(".pointer").textContent =
      `${seconds(at)} s \u00b7 frame ${Math.floor(at / FRAME + 1e-6)} \u00b7 token ${Math.floor(at / TOKEN + 1e-6)}` +
      (hz === undefined ? "" : ` \u00b7 f0 ${hz > 0 ? `${hz.toFixed(0)} Hz` : "\u2013"}`);
    report(position);
  }

  let told = 0, telling = false;
  /** Tell the reader's software and the kernel, a few times a second while it plays. */
  function report(position) {
    const now = performance.now();
    if (sound.group && now - told < 100) return;
    told = now;
    over.setAttribute("aria-valuenow", position.toFixed(3));
    over.setAttribute("aria-valuetext", `${seconds(position)} of ${seconds(data.length)} seconds`);
    if (!model) return;
    telling = true;
    for (const [name, value] of Object.entries(shared())) model.set(name, value);
    telling = false;
    model.save_changes();
  }

  function showChoice() {
    const trace = current();
    for (const button of root.querySelectorAll("[data-trace]")) {
      button.setAttribute("aria-pressed", !state.blind && Number(button.dataset.trace) === sound.heard);
    }
    $("[data-do=blind]")?.setAttribute("aria-pressed", state.blind);
    if ($("[data-do=reveal]")) $("[data-do=reveal]").hidden = !state.blind;
    $("[data-do=height]").textContent = `\u2195 \u00d7${picture.height}`;
    $("[data-do=height]").setAttribute("aria-label", `Height of the waveform's picture, times ${picture.height}`);
    $(".levels").textContent = state.blind
      ? "X: levels are hidden"
      : `${trace.rate} Hz PCM16 \u00b7 peak ${decibel(trace.peak_db)}FS \u00b7 RMS ${decibel(trace.rms_db)}FS \u00b7 ` +
        `gain ${decibel(trace.gain_db)} \u00b7 ${trace.clipped} clipped \u00b7 ` +
        `mel ${data.mel_range.map(tenth).join(" to ")} ln`;
    picture.base.setAttribute("aria-label", state.blind ? "hidden" : `Waveform, mel and f0 of ${trace.name}; mel from ${trace.mel_from}`);
    $(".findings").hidden = state.blind || !trace.findings.length;
    if (state.blind) return;
    $(".count").textContent = `${trace.findings.length} found`;
    $(".chips").replaceChildren(...trace.findings.map((found, i) => chip(found, i)));
    const pressed = $(".chips [aria-pressed=true]");
    if (pressed) $(".chips").scrollLeft = pressed.offsetLeft - $(".chips").offsetLeft - 40;
  }

  function chip(found, index) {
    const button = document.createElement("button");
    button.dataset.finding = index;
    button.textContent = found.text;
    button.setAttribute("aria-pressed", index === state.finding);
    button.style.borderLeftColor = picture.colours.kinds[kinds.indexOf(found.kind) % picture.colours.kinds.length];
    return button;
  }

  function follow() {
    if (!sound.group || leaving.signal.aborted) return;
    const { view } = picture, position = sound.position;
    if (!state.drag && position > view[1] && view[1] < data.length) picture.pan(position - view[0]), redraw();
    else if (!state.drag && position < view[0]) picture.pan(position - view[0]), redraw();
    else show();
    requestAnimationFrame(follow);
  }

  function paint(dark) {
    picture.colours = dark ? DARK : LIGHT;
    for (const name of ["back", "panel", "ink", "soft", "line", "edge", "cursor"]) {
      $(".player").style.setProperty(`--${name}`, picture.colours[name]);
    }
    $(".player").style.colorScheme = dark ? "dark" : "light";
    redraw();
  }

  function furnish() {
    $(".player").setAttribute("aria-label", `Player of ${traces.map((trace) => trace.name).join(", ")}`);
    $(".of").textContent = `/ ${seconds(data.length)} s`;
    over.setAttribute("aria-valuemax", data.length.toFixed(3));
    const button = (text, mark, value, title) => {
      const made = document.createElement("button");
      made.className = "name";
      made.textContent = text;
      made.title = title;
      made.dataset[mark] = value;
      $(".choices").append(made);
      return made;
    };
    const matched = traces.some((trace) => trace.gain_db !== 0);
    traces.forEach((trace, i) => {
      const gain = matched ? ` ${decibel(trace.gain_db)}` : "";
      button(`${letter(i)}${gain} \u00b7 ${trace.name}`, "trace", i, i < 9 ? `Hear and show ${letter(i)} (${i + 1})` : "");
    });
    if (traces.length > 1) {
      button("X", "do", "blind", "Blind: A or B, nobody knows which (x)").setAttribute("aria-label", "X, blind");
      button("reveal", "do", "reveal", "Say which one X is");
    }
    for (const warning of data.warnings) {
      const line = document.createElement("li");
      line.textContent = warning;
      $(".warn").append(line);
      $(".warn").hidden = false;
    }
  }

  // ---- and so it begins

  for (const [event, act] of model ? links : []) model.on(event, act);
  host.dataset.lmSuppressShortcuts = "true"; // JupyterLab would take the keys
  furnish();
  const theme = () => paint(isDark(host));
  const watcher = new ResizeObserver(() => {
    picture.resize();
    theme();
  });
  const pictures = traces.map((trace) => {
    trace.picture = new Image();
    trace.picture.src = trace.mel;
    return trace.picture.decode();
  });
  Promise.all(pictures).then(() => {
    if (leaving.signal.aborted) return;
    picture.resize();
    for (const [name, value] of asked) if (String(value) !== String(shared()[name])) orders[name](value);
    theme();
    watcher.observe(picture.base);
    on(matchMedia("(prefers-color-scheme: dark)"), "change", theme);
    on(window, "beforeprint", () => paint(false));
    on(window, "afterprint", theme);
  });
  const styled = new MutationObserver(theme); // JupyterLab changes its theme by attributes of the body
  styled.observe(document.body, { attributes: true });

  return () => {
    leaving.abort();
    for (const [event, act] of model ? links : []) model.off(event, act);
    watcher.disconnect();
    styled.disconnect();
    sound.close();
  };
}

/** Wake the players that lie in a page without kernel: their sounds and pictures stand there once, as what is
 * left where scripts do not run. */
export function wake(id, data) {
  for (const host of document.querySelectorAll(`[data-player="${id}"]`)) {
    if (host.shadowRoot) continue;
    const sources = (name) => [...host.querySelectorAll(name)].map((element) => element.getAttribute("src"));
    const wavs = sources("audio"), mels = sources("img");
    mount(host, { ...data, traces: data.traces.map((trace, i) => ({ ...trace, wav: wavs[i], mel: mels[i] })) }, null);
  }
}

export default {
  render({ model, el }) {
    const host = document.createElement("div");
    el.append(host);
    return mount(host, model.get("data"), model);
  },
};
