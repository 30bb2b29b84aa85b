/*
Keys, clicks and the pointer: which action of `Player` each of them calls.
*/

const SHIFT_STEP_S = 0.5; // seconds that an arrow key moves with shift
const DRAG_PIXELS = 4; // pixels that a click may move before it is a drag

/** @param {Player} player */
function listenToKeys(player) {
  const actions = {
    play: () => player.togglePlay(),
    loop: () => player.toggleLoop(!player.looping),
    out: () => player.zoom(2),
    in: () => player.zoom(0.5),
    fit: () => player.zoom(Infinity),
    height: () => player.changeHeight(),
    next: () => player.jump(player.finding + 1),
    previous: () => player.jump(player.finding < 0 ? -1 : player.finding - 1),
    reveal: () => player.reveal(),
    blind: () => player.chooseBlind(),
  };
  const step = (event) => (event.shiftKey ? SHIFT_STEP_S : player.data.token_seconds);
  const keys = {
    " ": actions.play,
    ArrowLeft: (event) => player.seek(player.sound.position - step(event)),
    ArrowRight: (event) => player.seek(player.sound.position + step(event)),
    Home: () => player.seek(0),
    End: () => player.seek(player.data.length),
    "[": () => player.loopFromHere(),
    "]": () => player.loopToHere(),
    l: actions.loop,
    x: actions.blind,
    n: actions.next,
    p: actions.previous,
    Escape: () => player.clearLoop(),
    "+": actions.in,
    "=": actions.in,
    "-": actions.out,
    0: actions.fit,
  };
  for (let index = 0; index < 9; index++) keys[index + 1] = () => player.choose(index);
  player.listen(player.root, "keydown", (event) => {
    const action = keys[event.key];
    const pressesButton = event.key === " " && event.target !== player.overlay; // or opens the list of keys
    if (!action || pressesButton || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    action(event);
  });
  player.listen(player.root, "click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.dataset.trace) player.choose(Number(button.dataset.trace));
    else if (button.dataset.finding) player.jump(Number(button.dataset.finding));
    else actions[button.dataset.action]();
    const byPointer = event.detail > 0;
    if (byPointer) player.overlay.focus({ preventScroll: true }); // so that the space bar plays after a click
  });
}

/** @param {Player} player */
function listenToPointer(player) {
  const timeAt = (event) => player.picture.t(event.clientX - player.overlay.getBoundingClientRect().left);
  player.listen(player.overlay, "pointerdown", (event) => {
    if (event.button) return; // not the main one
    player.overlay.setPointerCapture(event.pointerId);
    player.drag = { x: event.clientX, start: timeAt(event), moved: false };
  });
  player.listen(player.overlay, "pointermove", (event) => {
    player.pointer = timeAt(event);
    if (player.drag && Math.abs(event.clientX - player.drag.x) > DRAG_PIXELS) player.drag.moved = true;
    player.show();
  });
  player.listen(player.overlay, "pointerup", (event) => {
    const drag = player.drag;
    player.drag = null;
    if (drag?.moved) player.setLoop(drag.start, timeAt(event), false);
    else if (drag) player.seek(drag.start);
  });
  player.listen(player.overlay, "pointercancel", () => (player.drag = null));
  player.listen(player.overlay, "pointerleave", () => {
    player.pointer = null;
    player.show();
  });
  const onWheel = (event) => {
    if (event.ctrlKey || event.metaKey) {
      player.zoom(2 ** (event.deltaY / 200), timeAt(event)); // 200 pixels of the wheel double the view
    } else if (event.deltaX) {
      player.picture.pan((event.deltaX / player.picture.span) * player.picture.duration);
      player.redraw();
    } else return;
    event.preventDefault();
  };
  player.listen(player.overlay, "wheel", onWheel, { passive: false });
}
