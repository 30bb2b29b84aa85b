/*
Keys, clicks and the pointer: which action of `Player` each of them calls.
*/

const SHIFT_STEP_S = 0.5; // seconds that an arrow key moves with shift
const STEPS_OF_VIEW = 50; // an arrow key moves no more than this part of what is visible
const DRAG_PIXELS = 4; // pixels that a click may move before it is a drag
const PAGE = 0.9; // of the view that a page key scrolls

/** @param {Player} player @returns {Object<string, () => void>} by the names in player.html */
function actionsOf(player) {
  return {
    play: () => player.togglePlay(),
    loop: () => player.toggleLoop(!player.looping),
    out: () => player.zoom(2),
    in: () => player.zoom(0.5),
    fit: () => player.zoom(Infinity),
    region: () => zoomToRegion(player),
    height: () => player.changeHeight(),
    next: () => player.jump(player.finding + 1),
    previous: () => player.jump(player.finding < 0 ? -1 : player.finding - 1),
    blind: () => hearX(player),
    reveal: () => revealX(player),
    endTest: () => endTest(player),
    saveTest: () => saveTest(player),
    closeTest: () => {
      player.outcome = null;
      player.redraw();
    },
    stack: () => player.toggleStack(),
    link: () => {
      player.linked = !player.linked;
      player.redraw();
    },
    save: () => player.saveSound(null),
    savePart: () => player.saveSound(player.region),
  };
}

/** @param {Player} player */
function loopFromHere(player) {
  const start = player.sound.position;
  player.setLoop(start, Math.max(player.region?.[1] ?? 0, start + FINDING_MARGIN_S), true);
}

/** @param {Player} player */
function loopToHere(player) {
  const end = player.sound.position;
  player.setLoop(Math.min(player.region?.[0] ?? Infinity, end - FINDING_MARGIN_S), end, true);
}

/** Show the region, with a little beside it. @param {Player} player */
function zoomToRegion(player) {
  if (!player.region) {
    player.controls.announce("no region yet: drag over the picture, or press [ and ]");
    return;
  }
  const [start, end] = player.region;
  player.picture.axis.show(start - (end - start) * 0.05, (end - start) * 1.1);
  player.redraw();
}

/** Seconds that an arrow key moves: a token, or less where less is visible, down to a sample. */
function stepOf(player, event) {
  if (event.shiftKey) return SHIFT_STEP_S;
  const fine = player.picture.axis.duration / STEPS_OF_VIEW;
  return clamp(fine, 1 / player.data.maxRate, player.data.token_seconds);
}

/** @param {Player} player */
function listenToKeys(player) {
  const actions = actionsOf(player);
  const keys = {
    " ": actions.play,
    ArrowLeft: (event) => player.seek(player.sound.position - stepOf(player, event)),
    ArrowRight: (event) => player.seek(player.sound.position + stepOf(player, event)),
    Home: () => player.seek(0),
    End: () => player.seek(player.data.length),
    PageUp: () => player.scroll(-PAGE),
    PageDown: () => player.scroll(PAGE),
    "[": () => loopFromHere(player),
    "]": () => loopToHere(player),
    l: actions.loop,
    x: actions.blind,
    n: actions.next,
    p: actions.previous,
    s: actions.stack,
    z: actions.region,
    Escape: () => player.clearLoop(),
    "+": actions.in,
    "=": actions.in,
    "-": actions.out,
    0: actions.fit,
  };
  for (let index = 0; index < 9; index++) keys[index + 1] = () => player.choose(index);
  player.listen(player.root, "keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("select, input")) return;
    const digit = /^Digit([1-9])$/.exec(event.code); // with shift the key is another character
    const answers = event.shiftKey && digit && player.test;
    const action = answers ? () => answerX(player, Number(digit[1]) - 1) : keys[event.key];
    const pressesButton = event.key === " " && event.target !== player.overlay; // or opens the list of keys
    if (!action || pressesButton) return;
    event.preventDefault();
    event.stopPropagation();
    action(event);
  });
}

/** @param {Player} player */
function listenToControls(player) {
  const actions = actionsOf(player);
  player.listen(player.root, "click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    const { trace, finding, row, answer, action } = button.dataset;
    if (trace) player.choose(Number(trace));
    else if (finding) player.jump(Number(finding));
    else if (answer) answerX(player, Number(answer));
    else if (row) player.toggleRow(row);
    else actions[action]();
    const byPointer = event.detail > 0;
    if (byPointer) player.overlay.focus({ preventScroll: true }); // so that the space bar plays after a click
  });
  const changes = {
    window: (value) => (player.picture.computed.window = Number(value)),
    reference: (value) => (player.picture.computed.reference = Number(value)),
    speed: (value) => player.sound.setSpeed(Number(value)),
    candidates: () => player.test && startTest(player), // trials of other candidates do not count
    planned: () => player.test && startTest(player),
  };
  player.listen(player.root, "change", ({ target }) => {
    changes[target.className]?.(target.value);
    if (target.closest(".blind") && player.hearsX) hearX(player);
    player.redraw();
  });
  player.listen(player.root.querySelector(".volume"), "input", ({ target }) => {
    player.sound.setVolume(target.value ** 2); // so that the middle sounds like half
  });
}

/** @param {Player} player */
function listenToPointer(player) {
  const { overlay, picture } = player;
  const axis = picture.axis;
  const touches = new Map(); // pointer -> x, of fingers
  const placeOf = (event) => {
    const box = overlay.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  player.listen(overlay, "pointerdown", (event) => {
    const [x, y] = placeOf(event);
    const zone = picture.zoneAt(y);
    const isMain = event.button === 0;
    if (!isMain && event.button !== 1) return; // 1 is the wheel
    if (event.pointerType === "touch") touches.set(event.pointerId, x);
    overlay.setPointerCapture(event.pointerId);
    let kind = "region";
    if (zone === "overview") kind = "overview";
    else if (zone === "ruler" || !isMain || event.pointerType === "touch") kind = "scroll";
    player.drag = { kind, x, start: axis.t(x), view: [...axis.view], moved: false };
    if (kind === "overview") moveOverview(player, x);
    if (!isMain) event.preventDefault(); // the browser's own scrolling
  });
  player.listen(overlay, "pointermove", (event) => {
    const [x, y] = placeOf(event);
    overlay.dataset.zone = picture.zoneAt(y);
    player.pointer = axis.t(x);
    const drag = player.drag;
    if (touches.size === 2 && touches.has(event.pointerId)) {
      pinch(player, touches, event.pointerId, x);
      return;
    }
    if (drag && Math.abs(x - drag.x) > DRAG_PIXELS) drag.moved = true;
    if (drag?.moved && drag.kind === "scroll") {
      axis.show(drag.view[0] - ((x - drag.x) / axis.span) * axis.duration, axis.duration);
      player.redraw();
    } else if (drag?.kind === "overview") moveOverview(player, x);
    else player.show();
  });
  player.listen(overlay, "pointerup", (event) => {
    touches.delete(event.pointerId);
    const drag = player.drag;
    player.drag = null;
    if (!drag || drag.kind === "overview") return;
    if (!drag.moved) player.seek(drag.start);
    else if (drag.kind === "region") player.setLoop(drag.start, axis.t(placeOf(event)[0]), false);
  });
  player.listen(overlay, "pointercancel", (event) => {
    touches.delete(event.pointerId);
    player.drag = null;
  });
  player.listen(overlay, "pointerleave", () => {
    player.pointer = null;
    player.show();
  });
  const onWheel = (event) => {
    const [x] = placeOf(event);
    const sideways = event.deltaX || (event.shiftKey ? event.deltaY : 0);
    if (event.ctrlKey || event.metaKey) {
      player.zoom(2 ** (event.deltaY / 200), axis.t(x)); // 200 pixels of the wheel double the view
    } else if (sideways) {
      axis.pan((sideways / axis.span) * axis.duration);
      player.redraw();
    } else return; // the page scrolls
    event.preventDefault();
  };
  player.listen(overlay, "wheel", onWheel, { passive: false });
}

/** Move the view to a place of the overview; where all is visible, move the sound. */
function moveOverview(player, x) {
  const t = player.picture.overviewTime(x);
  if (player.picture.axis.isZoomed) player.picture.axis.centre(t);
  else player.seek(t);
  player.redraw();
}

/** Zoom by two fingers. @param {Player} player @param {Map<number, number>} touches @param {number} id @param {number} x */
function pinch(player, touches, id, x) {
  const distance = () => Math.max(Math.abs([...touches.values()][0] - [...touches.values()][1]), 20); // pixels
  const before = distance();
  touches.set(id, x);
  const middle = ([...touches.values()][0] + [...touches.values()][1]) / 2;
  player.drag.moved = true;
  player.zoom(before / distance(), player.picture.axis.t(middle));
}
