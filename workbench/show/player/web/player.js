/*
The page side of the player. page.py joins the files of this folder to one ES module: STYLE and MARKUP (player.css
and player.html as strings), then the scripts in the order of its SCRIPTS. The module fetches nothing. It draws into
a shadow root, which neither the page's styles nor other players can reach.

`Player` holds the state and does what users and the kernel ask for. `Sound` plays; `Picture` draws, with the
`TimeAxis`, the rows and what `Computed` has a worker compute; `BlindTest` counts trials; `Controls` writes the text
around the picture; input.js calls the actions.
*/

const FINDING_MARGIN_S = 0.3; // seconds looped on either side of a finding
const MIN_LOOP_S = 0.02; // a shorter loop is heard as a tone
const FINE_VIEW_S = 0.05; // seconds of a view in which times are told to the sample
const MAX_HEIGHT_GAIN = 64; // of the waveform's picture
const PAPER = { width: 720, height: 860, ratio: 3 }; // pixels of a picture that a page holds, and dots of each
const STARTED = "workbench-player-started"; // event of the document: another player began

class Player {
  /**
   * @param {HTMLElement} host is given a shadow root; what it holds is shown until the player is drawn
   * @param {PlayerData} payload
   * @param {object|null} model the widget's, null on a page without kernel
   */
  constructor(host, payload, model) {
    this.host = host;
    this.model = model;
    this.payload = payload;
    this.root = host.attachShadow({ mode: "open" });
    this.root.innerHTML = `<style>${STYLE}</style>${MARKUP}`;
    this.element = this.root.querySelector(".player");
    this.overlay = this.root.querySelector(".overlay");

    this.region = null; // Range of the latest loop; it stays while the loop is off
    this.looping = false;
    this.test = null; // BlindTest that goes on
    this.outcome = null; // BlindTest that has ended
    this.hearsX = false; // which trace is heard is hidden
    this.stacked = false; // all traces are shown
    this.linked = true; // moves with others of the same trace
    this.pointer = null; // seconds under the pointer
    this.finding = -1; // index of the latest finding that was jumped to
    this.drag = null; // what the pointer does while it is down, see input.js
    this.printing = false;
    this.closing = new AbortController(); // ends all listeners
    this.host.dataset.lmSuppressShortcuts = "true"; // JupyterLab would take the keys
  }

  /** Decode, apply what the kernel has set already, draw, and listen. */
  async open() {
    try {
      this.data = await decode(this.payload);
    } catch (error) {
      this.host.append(`The player cannot decode its sound here: ${error.message}`); // beside the plain elements
      return;
    }
    if (this.closed) return;
    this.sound = new Sound(this.data);
    this.sound.onend = () => this.show();
    this.sound.onspeedfailed = () => this.failSpeed();
    this.picture = new Picture(this.root.querySelector(".base"), this.overlay, this.data, () => this.redraw());
    this.controls = new Controls(this.root, this.data);
    this.sync = new Sync(this);
    this.root.querySelector("slot").hidden = true;
    this.element.hidden = false;
    this.fit();
    this.setDark(isDark(this.host));
    listenToKeys(this);
    listenToControls(this);
    listenToPointer(this);
    this.listen(document, STARTED, (event) => event.detail !== this.host && this.pause());
    this.watchPage();
    this.sync.listen();
    this.redraw();
  }

  /** Follow the page: its width, its colours, and paper. */
  watchPage() {
    const applyTheme = () => this.printing || this.setDark(isDark(this.host));
    this.themeObserver = new MutationObserver(applyTheme); // JupyterLab sets attributes of the body
    this.themeObserver.observe(document.body, { attributes: true });
    this.sizeObserver = new ResizeObserver(() => {
      if (this.printing || !this.fit()) return;
      applyTheme();
    });
    this.sizeObserver.observe(this.root.querySelector(".stage"));
    this.listen(matchMedia("(prefers-color-scheme: dark)"), "change", applyTheme);
    this.listen(matchMedia("print"), "change", (event) => this.setPrinting(event.matches));
    this.listen(window, "beforeprint", () => this.setPrinting(true));
    this.listen(window, "afterprint", () => this.setPrinting(false));
  }

  /** Take the width of the page. @returns {boolean} whether it has changed */
  fit() {
    const width = Math.max(this.picture.base.clientWidth, 200);
    const isChanged = width !== this.picture.axis.width;
    this.picture.axis.width = width;
    return isChanged;
  }

  /**
   * Draw for paper: light, at a width of paper, finely, and all traces where a page holds them. The page changes its
   * width only after that and tells so too late to draw once more, so the style stretches the picture to the paper.
   *
   * @param {boolean} printing
   */
  setPrinting(printing) {
    if (printing === this.printing) return;
    this.printing = printing;
    this.picture.ratio = printing ? PAPER.ratio : null;
    if (printing) this.picture.axis.width = PAPER.width;
    else this.fit();
    this.setDark(printing ? false : isDark(this.host));
  }

  close() {
    this.closing.abort();
    this.sync?.close();
    this.sizeObserver?.disconnect();
    this.themeObserver?.disconnect();
    this.picture?.computed.close();
    this.sound?.close();
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

  /** The trace that is heard and may be known: null while X is heard. */
  get shown() {
    return this.hearsX ? null : this.heard;
  }

  /** The traces that have rows in the picture. */
  get visibleTraces() {
    const all = this.data.traces;
    if (this.hearsX) return [all[0]]; // covered
    const fitsPaper = this.printing && this.picture.heightOf(all) <= PAPER.height;
    return this.stacked || fitsPaper ? all : [this.heard];
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

  /** @param {number} index of the trace to hear and show; a blind test goes on */
  choose(index) {
    if (index >= this.data.traces.length) return;
    this.hearsX = false;
    this.finding = -1;
    this.sound.choose(index);
    this.controls.announce(`${letterOf(index)}: ${this.heard.name}`);
    this.redraw();
  }

  // ---- loop and findings

  /**
   * @param {number} start seconds
   * @param {number} end seconds
   * @param {boolean} keepPosition whether to go on from here if that is inside the loop
   */
  setLoop(start, end, keepPosition) {
    const left = clamp(Math.min(start, end), 0, this.data.length);
    const right = clamp(Math.max(start, end), 0, this.data.length);
    if (right - left < 1 / this.data.maxRate) return;
    const isLong = right - left >= MIN_LOOP_S; // a shorter one is a region to measure, zoom to and save
    this.region = [left, right];
    this.looping = isLong;
    this.moveTo(this.intoLoop(keepPosition ? this.sound.position : left));
    this.controls.announce(`${isLong ? "loop" : "region"} from ${formatSeconds(left)} to ${formatSeconds(right)} s`);
    this.show();
  }

  /** @param {boolean} on */
  toggleLoop(on) {
    if (!this.region) this.region = [...this.picture.axis.view]; // what is visible
    if (on && this.region[1] - this.region[0] < MIN_LOOP_S) {
      this.controls.announce(`the region is shorter than ${MIN_LOOP_S} s; a loop of it would be a tone`);
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

  /** Loop around a finding. @param {number} index counts on from the other end beyond the first and last */
  jump(index) {
    const findings = this.heard.findings;
    if (this.hearsX || !findings.length) return;
    this.finding = (index + findings.length) % findings.length;
    const finding = findings[this.finding];
    this.setLoop(finding.start - FINDING_MARGIN_S, finding.end + FINDING_MARGIN_S, false);
    const [left, right] = this.picture.axis.view;
    if (this.loop && (this.loop[0] < left || this.loop[1] > right)) {
      this.picture.axis.centre((this.loop[0] + this.loop[1]) / 2);
    }
    this.controls.announce(`finding ${this.finding + 1} of ${findings.length}: ${finding.text}`);
    this.redraw();
  }

  // ---- the view

  /** @param {number} factor of the view's duration @param {number} t seconds that stay in place */
  zoom(factor, t = this.sound.position) {
    const axis = this.picture.axis;
    const isVisible = t >= axis.view[0] && t <= axis.view[1];
    axis.zoom(axis.duration * factor, isVisible ? t : (axis.view[0] + axis.view[1]) / 2);
    this.redraw();
  }

  /** @param {number} pages of the view */
  scroll(pages) {
    this.picture.axis.pan(pages * this.picture.axis.duration);
    this.redraw();
  }

  changeHeight() {
    const gain = this.picture.gain;
    this.picture.gain = gain >= MAX_HEIGHT_GAIN ? 1 : gain * 2;
    this.redraw();
  }

  /** @param {string} row to show or hide */
  toggleRow(row) {
    const rows = this.picture.rows;
    if (!rows.delete(row)) rows.add(row);
    this.controls.announce(`${row} ${rows.has(row) ? "shown" : "hidden"}`);
    this.redraw();
  }

  toggleStack() {
    this.stacked = !this.stacked && this.data.traces.length > 1;
    this.controls.announce(this.stacked ? "all traces" : "one trace");
    this.redraw();
  }

  failSpeed() {
    this.controls.find(".speed").value = "1";
    this.controls.announce("this page forbids other speeds");
  }

  /** Save what is heard, or the region of it. @param {Range|null} region */
  saveSound(region) {
    if (!this.hearsX) saveTrace(this.heard, letterOf(this.sound.heard), region);
  }

  /** Listen until the player is closed. */
  listen(target, type, handler, options = {}) {
    target.addEventListener(type, handler, { signal: this.closing.signal, ...options });
  }

  // ---- drawing

  /** @param {boolean} dark */
  setDark(dark) {
    this.element.classList.toggle("dark", dark);
    this.picture.colours = readColours(this.element);
    this.redraw();
  }

  /** Draw everything: after a change of trace, view or colours. */
  redraw() {
    if (this.closed) return;
    const trace = this.shown;
    this.picture.draw(this.visibleTraces, trace, this.finding);
    this.controls.showChoice(this.sound.heard, this.hearsX, this.test);
    this.controls.showOutcome(this.outcome);
    this.controls.showHeight(this.picture.gain);
    this.controls.showRows(this.picture, this.stacked, this.linked);
    const difference = trace && this.picture.rows.has("difference") ? this.picture.computed.difference(trace).text : "";
    const rows = [...this.picture.rows].filter((row) => this.picture.has(row));
    this.controls.showLevels(trace, rows, difference);
    this.controls.showFindings(trace?.findings ?? [], this.finding, (kind) => this.picture.kindColour(kind));
    this.show();
  }

  /** Draw what moves: the cursor, the pointer and the loop. */
  show() {
    const position = this.sound.position;
    const dragging = this.drag?.kind === "region" && this.drag.moved;
    const region = dragging ? [this.drag.start, this.pointer].sort((a, b) => a - b) : this.region;
    this.picture.drawCursor(position, this.pointer, region, this.looping || dragging);
    this.controls.showPlaying(this.sound.playing);
    this.controls.showLoop(this.region, this.looping);
    this.controls.find("[data-action=savePart]").disabled = !this.region || this.hearsX;
    const isFine = this.picture.axis.duration < FINE_VIEW_S;
    this.controls.showPosition(position, this.pointer, this.shown, region, isFine);
    this.sync.report();
  }

  /** Draw every frame of the screen while it plays, and turn the page when the cursor leaves the view. */
  follow() {
    if (!this.sound.playing || this.closed) return;
    const position = this.sound.position;
    const [left, right] = this.picture.axis.view;
    const outside = position < left || (position > right && right < this.data.length);
    if (outside && !this.drag) {
      this.picture.axis.pan(position - left);
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
 * @param {PlayerData} data without `sound` and `mel`
 */
export function wake(id, data) {
  for (const host of document.querySelectorAll(`[data-player="${id}"]`)) {
    if (host.shadowRoot) continue; // the script ran already
    const sounds = [...host.querySelectorAll("audio")].map((element) => element.getAttribute("src"));
    const mels = [...host.querySelectorAll("img")].map((element) => element.getAttribute("src"));
    const traces = data.traces.map((trace, index) => ({ ...trace, sound: sounds[index], mel: mels[index] }));
    const release = holdLoading();
    new Player(host, { ...data, traces }, null).open().finally(release);
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
