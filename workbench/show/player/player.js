/*
The page side of the player. page.py joins the files of this folder to one ES module, in this order: STYLE and
MARKUP (player.css and player.html as strings), data.js, colours.js, sound.js, picture.js, controls.js, input.js,
player.js. The module fetches nothing. It draws into a shadow root, which neither the page's styles nor other
players can reach.

`Player` holds the state and does what users and the kernel ask for. `Sound` plays, `Picture` draws, `Controls`
writes the text around the picture, and input.js calls the actions.
*/

const FINDING_MARGIN_S = 0.3; // seconds looped on either side of a finding
const MIN_LOOP_S = 0.02; // a shorter loop is heard as a tone
const MAX_HEIGHT_GAIN = 16; // of the waveform's picture
const REPORT_INTERVAL_MS = 100; // between reports to the kernel and to screen readers while it plays
const STARTED = "workbench-player-started"; // event of the document: another player began
const SYNCED = ["position", "loop", "choice"]; // traits of the widget, see player.py

class Player {
  /**
   * @param {HTMLElement} host is given a shadow root
   * @param {PlayerData} payload
   * @param {object|null} model the widget's, null on a page without kernel
   */
  constructor(host, payload, model) {
    this.host = host;
    this.model = model;
    this.data = decode(payload);
    this.root = host.attachShadow({ mode: "open" });
    this.root.innerHTML = `<style>${STYLE}</style>${MARKUP}`;
    this.overlay = this.root.querySelector(".overlay");
    this.sound = new Sound(this.data.traces, this.data.length);
    this.sound.onend = () => this.show();
    this.picture = new Picture(this.root.querySelector(".base"), this.overlay, this.data);
    this.controls = new Controls(this.root, this.data);

    this.region = null; // Range of the latest loop; it stays while the loop is off
    this.looping = false;
    this.blind = false; // X: which of A and B is heard is hidden
    this.pointer = null; // seconds under the pointer
    this.finding = -1; // index of the latest finding that was jumped to
    this.drag = null; // {x, start, moved} while the pointer is down
    this.reportedAt = 0; // milliseconds
    this.reporting = false; // while values go to the kernel

    this.closing = new AbortController(); // ends all listeners
    this.host.dataset.lmSuppressShortcuts = "true"; // JupyterLab would take the keys
    listenToKeys(this);
    listenToPointer(this);
    this.listen(document, STARTED, (event) => {
      if (event.detail !== this.host) this.pause();
    });
    this.connect();
  }

  /** Wait for the pictures, apply what the kernel has set already, and draw. */
  async open() {
    const requested = this.model ? SYNCED.map((name) => [name, this.model.get(name)]) : [];
    const decoded = this.data.traces.map((trace) => {
      trace.picture = new Image();
      trace.picture.src = trace.mel;
      return trace.picture.decode();
    });
    const applyTheme = () => this.setDark(isDark(this.host));
    this.themeObserver = new MutationObserver(applyTheme); // JupyterLab sets attributes of the body
    this.sizeObserver = new ResizeObserver(() => {
      this.picture.resize();
      applyTheme();
    });
    await Promise.all(decoded);
    if (this.closed) return;
    this.picture.resize();
    for (const [name, value] of requested) this.apply(name, value);
    applyTheme();
    this.sizeObserver.observe(this.picture.base);
    this.themeObserver.observe(document.body, { attributes: true });
    this.listen(matchMedia("(prefers-color-scheme: dark)"), "change", applyTheme);
    this.listen(window, "beforeprint", () => this.setDark(false));
    this.listen(window, "afterprint", applyTheme);
  }

  close() {
    this.closing.abort();
    for (const [event, handler] of this.links) this.model.off(event, handler);
    this.sizeObserver.disconnect();
    this.themeObserver.disconnect();
    this.sound.close();
  }

  get closed() {
    return this.closing.signal.aborted;
  }

  /** The region that repeats, or null. */
  get loop() {
    return this.looping ? this.region : null;
  }

  /** The trace that is heard. */
  get heard() {
    return this.data.traces[this.sound.heard];
  }

  /** The trace that is shown: null during a blind comparison. */
  get shown() {
    return this.blind ? null : this.heard;
  }

  // ---- actions

  async togglePlay() {
    if (this.sound.playing) {
      this.pause();
      this.controls.announce(`paused at ${formatSeconds(this.sound.position)} s`);
      return;
    }
    document.dispatchEvent(new CustomEvent(STARTED, { detail: this.host }));
    await this.sound.prepare();
    if (this.sound.playing || this.closed) return; // a second press or the end of the page came meanwhile
    const atEnd = this.sound.pausedAt >= this.data.length - 0.001; // a millisecond, for rounding
    this.sound.start(this.intoLoop(atEnd ? 0 : this.sound.pausedAt), this.loop);
    this.controls.announce("playing");
    this.show();
    this.follow();
  }

  pause() {
    if (!this.sound.playing) return;
    this.sound.stop();
    this.show();
  }

  /** @param {number} t seconds @returns {number} the start of the loop for a time outside it */
  intoLoop(t) {
    if (!this.loop) return t;
    const [start, end] = this.loop;
    return t < start || t >= end ? start : t;
  }

  /** Move to a time and keep playing or pausing. @param {number} t seconds */
  moveTo(t) {
    this.sound.pausedAt = t;
    if (this.sound.playing) this.sound.start(t, this.loop);
  }

  /** Move to a time; outside the loop that ends the loop. @param {number} t seconds */
  seek(t) {
    const target = clamp(t, 0, this.data.length);
    if (this.intoLoop(target) !== target) this.looping = false;
    this.moveTo(target);
    this.show();
  }

  /** @param {number} index of the trace to hear and show */
  choose(index) {
    if (index >= this.data.traces.length) return;
    this.blind = false;
    this.finding = -1;
    this.sound.choose(index);
    this.controls.announce(`${letterOf(index)}: ${this.heard.name}`);
    this.redraw();
  }

  /** Choose A or B at random and hide which. */
  chooseBlind() {
    if (this.data.traces.length < 2) return;
    this.blind = true;
    this.sound.choose(crypto.getRandomValues(new Uint8Array(1))[0] % 2);
    this.controls.announce("X, which is A or B");
    this.redraw();
  }

  reveal() {
    this.choose(this.sound.heard);
    this.controls.announce(`X was ${letterOf(this.sound.heard)}: ${this.heard.name}`);
  }

  /**
   * @param {number} start seconds
   * @param {number} end seconds
   * @param {boolean} keepPosition whether to go on from here if that is inside the loop
   */
  setLoop(start, end, keepPosition) {
    const left = clamp(Math.min(start, end), 0, this.data.length);
    const right = clamp(Math.max(start, end), 0, this.data.length);
    if (right - left < MIN_LOOP_S) return;
    this.region = [left, right];
    this.looping = true;
    this.moveTo(this.intoLoop(keepPosition ? this.sound.position : left));
    this.controls.announce(`loop from ${formatSeconds(left)} to ${formatSeconds(right)} s`);
    this.show();
  }

  /** @param {boolean} on */
  toggleLoop(on) {
    if (!this.region) {
      this.controls.announce("no loop yet: drag over the picture, or press [ and ]");
      return;
    }
    const position = this.sound.position; // of the loop as it was
    this.looping = on;
    this.moveTo(this.intoLoop(position));
    this.controls.announce(on ? "loop on" : "loop off");
    this.show();
  }

  clearLoop() {
    if (this.looping) this.toggleLoop(false);
    this.region = null;
    this.controls.announce("no loop");
    this.show();
  }

  loopFromHere() {
    const start = this.sound.position;
    this.setLoop(start, Math.max(this.region?.[1] ?? 0, start + FINDING_MARGIN_S), true);
  }

  loopToHere() {
    const end = this.sound.position;
    this.setLoop(Math.min(this.region?.[0] ?? Infinity, end - FINDING_MARGIN_S), end, true);
  }

  /** Loop around a finding. @param {number} index counts on from the other end beyond the first and last */
  jump(index) {
    const findings = this.heard.findings;
    if (this.blind || !findings.length) return;
    this.finding = (index + findings.length) % findings.length;
    const finding = findings[this.finding];
    this.setLoop(finding.start - FINDING_MARGIN_S, finding.end + FINDING_MARGIN_S, false);
    const [left, right] = this.picture.view;
    if (this.loop && (this.loop[0] < left || this.loop[1] > right)) {
      this.picture.centre((this.loop[0] + this.loop[1]) / 2);
    }
    this.controls.announce(`finding ${this.finding + 1} of ${findings.length}: ${finding.text}`);
    this.redraw();
  }

  /** @param {number} factor of the view's duration @param {number} t seconds that stay in place */
  zoom(factor, t = this.sound.position) {
    this.picture.zoom(this.picture.duration * factor, clamp(t, ...this.picture.view));
    this.redraw();
  }

  changeHeight() {
    const gain = this.picture.gain;
    this.picture.gain = gain >= MAX_HEIGHT_GAIN ? 1 : gain * 2;
    this.redraw();
  }

  /** Listen until the player is closed. */
  listen(target, type, handler, options = {}) {
    target.addEventListener(type, handler, { signal: this.closing.signal, ...options });
  }

  // ---- the kernel

  /** Follow the widget's traits, where there is a widget. */
  connect() {
    const names = this.model ? SYNCED : [];
    this.links = names.map((name) => {
      const handler = () => {
        if (!this.reporting) this.apply(name, this.model.get(name));
      };
      return [`change:${name}`, handler];
    });
    for (const [event, handler] of this.links) this.model.on(event, handler);
  }

  /** The synced values as they are here. */
  get values() {
    return { position: this.sound.position, loop: this.loop ?? [], choice: this.blind ? -1 : this.sound.heard };
  }

  /** Do what a value of the kernel asks for. @param {string} name @param {number|number[]} value */
  apply(name, value) {
    if (String(value) === String(this.values[name])) return;
    if (name === "position") this.seek(value);
    else if (name === "choice" && value < 0) this.chooseBlind();
    else if (name === "choice") this.choose(value);
    else if (value.length) this.setLoop(value[0], value[1], true);
    else if (this.looping) this.toggleLoop(false);
  }

  /** Send position, loop and choice to screen readers and the kernel, a few times a second while it plays. */
  report() {
    const now = performance.now();
    if (this.sound.playing && now - this.reportedAt < REPORT_INTERVAL_MS) return;
    this.reportedAt = now;
    this.controls.showSlider(this.sound.position);
    if (!this.model) return;
    this.reporting = true;
    for (const [name, value] of Object.entries(this.values)) this.model.set(name, value);
    this.reporting = false;
    this.model.save_changes();
  }

  // ---- drawing

  /** @param {boolean} dark */
  setDark(dark) {
    this.picture.colours = dark ? DARK : LIGHT;
    this.controls.setColours(this.picture.colours, dark);
    this.redraw();
  }

  /** Draw everything: after a change of trace, view or colours. */
  redraw() {
    const trace = this.shown;
    this.picture.draw(trace);
    this.controls.showChoice(this.sound.heard, this.blind);
    this.controls.showHeight(this.picture.gain);
    this.controls.showLevels(trace);
    this.controls.showFindings(trace?.findings ?? [], this.finding, (kind) => this.picture.kindColour(kind));
    this.show();
  }

  /** Draw what moves: the cursor, the pointer and the loop. */
  show() {
    const position = this.sound.position;
    const dragging = Boolean(this.drag?.moved);
    const region = dragging ? [this.drag.start, this.pointer].sort((a, b) => a - b) : this.region;
    this.picture.drawCursor(position, this.pointer, region, this.looping || dragging);
    this.controls.showPlaying(this.sound.playing);
    this.controls.showLoop(this.region, this.looping);
    this.controls.showPosition(position, this.pointer, this.shown);
    this.report();
  }

  /** Draw every frame of the screen while it plays, and turn the page when the cursor leaves the view. */
  follow() {
    if (!this.sound.playing || this.closed) return;
    const position = this.sound.position;
    const [left, right] = this.picture.view;
    const outside = position < left || (position > right && right < this.data.length);
    if (outside && !this.drag) {
      this.picture.pan(position - left);
      this.redraw();
    } else this.show();
    requestAnimationFrame(() => this.follow());
  }
}

/**
 * Draw the players of a page without kernel. Sound and picture stand in the host element as `<audio>` and `<img>`,
 * which remain where scripts do not run.
 *
 * @param {string} id of the host elements
 * @param {PlayerData} data without `wav` and `mel`
 */
export function wake(id, data) {
  for (const host of document.querySelectorAll(`[data-player="${id}"]`)) {
    if (host.shadowRoot) continue; // the script ran already
    const wavs = [...host.querySelectorAll("audio")].map((element) => element.getAttribute("src"));
    const mels = [...host.querySelectorAll("img")].map((element) => element.getAttribute("src"));
    const traces = data.traces.map((trace, index) => ({ ...trace, wav: wavs[index], mel: mels[index] }));
    new Player(host, { ...data, traces }, null).open();
  }
}

export default {
  /** Draw the widget; anywidget calls this. */
  render({ model, el }) {
    const host = document.createElement("div");
    el.append(host);
    const player = new Player(host, model.get("data"), model);
    player.open();
    return () => player.close();
  },
};
