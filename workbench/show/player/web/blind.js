/*
The blind test: X is one of the candidates, drawn anew for every trial, and the listener says which. With two
candidates it is the ABX test. Nothing tells right from wrong before the planned number of trials is done: p holds
for a number that was fixed beforehand.
*/

const AUDIBLE_P = 0.05; // the usual level of significance
const LOUDNESS_STEP = 0.5; // LUFS between candidates that a listener may hear as loudness alone

/** @typedef {{x: number, answer: number}} Trial indexes of traces */

/**
 * Probability of at least so many right answers by guessing.
 *
 * @param {number} right
 * @param {number} trials
 * @param {number} chance of a right guess
 * @returns {number}
 */
function guessProbability(right, trials, chance) {
  let p = 0;
  let term = (1 - chance) ** trials; // of k right ones
  for (let k = 0; k <= trials; k++) {
    if (k >= right) p += term;
    term *= ((trials - k) / (k + 1)) * (chance / (1 - chance));
  }
  return Math.min(p, 1);
}

class BlindTest {
  /** @param {PlayerData} data @param {number[]} candidates indexes of traces @param {number} planned trials */
  constructor(data, candidates, planned) {
    this.data = data;
    this.candidates = candidates;
    this.planned = planned;
    this.trials = []; // Trial[]
    this.draw();
  }

  /** Draw X: every candidate is as likely. */
  draw() {
    const count = this.candidates.length;
    const bound = 256 - (256 % count); // bytes from there on would favour the first candidates
    let byte = bound;
    while (byte >= bound) [byte] = crypto.getRandomValues(new Uint8Array(1));
    this.x = this.candidates[byte % count];
  }

  /** @param {number} answer index of a trace */
  answer(answer) {
    this.trials.push({ x: this.x, answer });
    if (!this.isDone) this.draw();
  }

  get isDone() {
    return this.trials.length >= this.planned;
  }

  get right() {
    return this.trials.filter(({ x, answer }) => x === answer).length;
  }

  get p() {
    return guessProbability(this.right, this.trials.length, 1 / this.candidates.length);
  }

  /** @returns {string} the result in words */
  get line() {
    const count = this.trials.length;
    const parts = [`${this.right} of ${count} right; guessing reaches that with p = ${formatP(this.p)}`];
    if (count < this.planned) parts.push(`Ended after ${count} of ${this.planned} planned trials, so p is too small`);
    else if (this.p < AUDIBLE_P) parts.push("A difference was heard");
    else parts.push("No difference was shown, which is no proof that there is none");
    return `${parts.join(". ")}.`;
  }

  /** @returns {string} what may give X away; empty when nothing is known */
  get caution() {
    const levels = this.candidates.map((index) => this.data.traces[index]).filter((trace) => trace.lufs !== null);
    const loudness = levels.map((trace) => trace.lufs + trace.gain_db);
    const step = Math.max(...loudness) - Math.min(...loudness);
    if (!(step >= LOUDNESS_STEP)) return "";
    return `Loudness differs by ${step.toFixed(1)} LU and may give X away; match_levels=True undoes that.`;
  }

  /** @returns {object} for a file, see listening.py */
  get result() {
    return {
      kind: "workbench listening test",
      version: 1,
      ended: new Date().toISOString(),
      candidates: this.candidates.map((index) => {
        const { id, name, lufs, gain_db } = this.data.traces[index];
        return { letter: letterOf(index), id, name, lufs, gain_db };
      }),
      planned: this.planned,
      trials: this.trials.map(({ x, answer }) => ({ x: letterOf(x), answer: letterOf(answer) })),
    };
  }
}

/** @param {number} p @returns {string} */
function formatP(p) {
  return p < 0.001 ? p.toExponential(1) : p.toFixed(3);
}

// ---- what the player does with a test

/** Hear X; without a test one begins. @param {Player} player */
function hearX(player) {
  if (player.data.traces.length < 2) return;
  if (!player.test) startTest(player);
  player.hearsX = true;
  player.sound.choose(player.test.x);
  player.controls.announce(`X, which is one of ${player.test.candidates.map(letterOf).join(", ")}`);
  player.redraw();
}

/** Begin with what the controls say. */
function startTest(player) {
  const candidates = player.controls.find(".candidates").value.split(",").map(Number);
  player.test = new BlindTest(player.data, candidates, Number(player.controls.find(".planned").value));
  player.outcome = null;
  player.finding = -1;
}

/** @param {number} index of the trace that X is said to be */
function answerX(player, index) {
  if (!player.test?.candidates.includes(index)) return;
  player.test.answer(index);
  if (player.test.isDone) endTest(player);
  else {
    hearX(player);
    player.controls.announce(`X is said to be ${letterOf(index)}. Trial ${player.test.trials.length + 1}: a new X`);
  }
}

/** Say which X is; the trial does not count, and the next has a new X. */
function revealX(player) {
  if (!player.test) return;
  const x = player.test.x;
  player.test.draw();
  player.choose(x);
  player.controls.announce(`X was ${letterOf(x)}: ${player.heard.name}`);
}

/** Show the result of the trials and tell the kernel. */
function endTest(player) {
  const test = player.test;
  if (!test) return;
  player.test = null;
  if (test.trials.length) {
    player.outcome = test;
    player.model?.set("listening", [...player.model.get("listening"), test.result]);
    player.model?.save_changes();
  }
  const index = player.hearsX ? test.candidates[0] : player.sound.heard; // so that the last X stays unknown
  player.choose(index);
  player.controls.announce(test.trials.length ? test.line : "blind test ended without a trial");
}

function saveTest(player) {
  const text = JSON.stringify(player.outcome.result, null, 1);
  saveFile("listening-test.json", new Blob([text], { type: "application/json" }));
}
