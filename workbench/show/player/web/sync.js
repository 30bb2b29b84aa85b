/*
Who else follows the player: the kernel by the traits of its widget, screen readers, and other players, figures and
widgets of the same trace on the page.
*/

const REPORT_INTERVAL_MS = 100; // between reports while it plays
const SYNCED = ["position", "loop", "choice"]; // traits of the widget, see player.py
// Event of the document by which players, figures and widgets of one trace move together. Its detail:
// {trace: the id, position: seconds, view: [start, end] in seconds or null for the whole, source: who sent it}.
const VIEWED = "workbench-view";

class Sync {
  /** @param {Player} player */
  constructor(player) {
    this.player = player;
    this.model = player.model;
    this.reportedAt = 0; // milliseconds
    this.reporting = false; // while values go to the kernel
    this.sent = this.viewText; // what others were told last; nothing is news yet
    this.handlers = []; // [event, handler] of the model
    const names = this.model ? SYNCED : [];
    this.requested = names.map((name) => [name, this.model.get(name)]); // before the player reports its own
  }

  /** Apply what the kernel has set already, then follow it and the others. */
  listen() {
    for (const [name, value] of this.requested) this.apply(name, value);
    this.handlers = this.requested.map(([name]) => {
      const handler = () => {
        if (!this.reporting) this.apply(name, this.model.get(name));
      };
      return [`change:${name}`, handler];
    });
    for (const [event, handler] of this.handlers) this.model.on(event, handler);
    this.player.listen(document, VIEWED, (event) => this.follow(event.detail));
  }

  close() {
    for (const [event, handler] of this.handlers) this.model.off(event, handler);
  }

  /** The synced values as they are in the player. */
  get values() {
    const { sound, loop, hearsX } = this.player;
    return { position: sound.position, loop: loop ?? [], choice: hearsX ? -1 : sound.heard };
  }

  /** Do what a value of the kernel asks for. @param {string} name @param {number|number[]} value */
  apply(name, value) {
    const player = this.player;
    if (String(value) === String(this.values[name])) return;
    if (name === "position") player.seek(value);
    else if (name === "choice" && value < 0) hearX(player);
    else if (name === "choice") player.choose(value);
    else if (value.length) player.setLoop(value[0], value[1], true);
    else if (player.looping) player.toggleLoop(false);
  }

  /** Tell position, loop and choice, a few times a second while it plays. */
  report() {
    const { sound, controls, model } = this.player;
    const now = performance.now();
    if (sound.playing && now - this.reportedAt < REPORT_INTERVAL_MS) return;
    this.reportedAt = now;
    controls.showSlider(sound.position);
    this.tellOthers();
    if (!model) return;
    this.reporting = true;
    for (const [name, value] of Object.entries(this.values)) model.set(name, value);
    this.reporting = false;
    model.save_changes();
  }

  /** The visible seconds, null for the whole. */
  get view() {
    const axis = this.player.picture.axis;
    return axis.isZoomed ? [...axis.view] : null;
  }

  get viewText() {
    return JSON.stringify([this.view, this.player.sound.position]);
  }

  /** Tell others of the same trace what is shown; not while X is heard. */
  tellOthers() {
    const { linked, hearsX, heard, host, sound } = this.player;
    if (!linked || hearsX || this.viewText === this.sent) return;
    this.sent = this.viewText;
    const detail = { trace: heard.id, position: sound.position, view: this.view, source: host };
    document.dispatchEvent(new CustomEvent(VIEWED, { detail }));
  }

  /** @param {{trace: string, position: number, view: Range|null, source: unknown}} detail of another */
  follow({ trace, position, view, source }) {
    const { linked, hearsX, host, data, sound, picture } = this.player;
    if (!linked || hearsX || source === host) return;
    if (!data.traces.some((own) => own.id === trace)) return;
    if (!sound.playing && Number.isFinite(position)) sound.pausedAt = clamp(position, 0, data.length);
    const [start, end] = view ?? [0, data.length];
    const isMoved = JSON.stringify(view ?? null) !== JSON.stringify(this.view);
    if (isMoved && end > start) picture.axis.show(start, end - start);
    this.sent = this.viewText; // no echo
    if (isMoved) this.player.redraw();
    else this.player.show();
  }
}
