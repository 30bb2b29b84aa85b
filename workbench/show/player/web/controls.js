/*
The controls around the picture: buttons of the traces, position, levels, findings, warnings. `Controls` writes
text and states into the markup of player.html and decides nothing. Names and kinds come from anywhere, so they
become text, never markup.
*/

/** @param {number} index @returns {string} */
function letterOf(index) {
  return String.fromCharCode("A".charCodeAt(0) + index);
}

/** @param {number} t seconds @returns {string} */
function formatSeconds(t) {
  return t.toFixed(3);
}

/** @param {number} x @param {number} places decimals @returns {string} with a typographic minus */
function formatFixed(x, places) {
  const text = Math.abs(x).toFixed(places);
  return x < 0 && Number(text) > 0 ? `\u2212${text}` : text;
}

/** @param {number} x @returns {string} one decimal */
function formatTenths(x) {
  return formatFixed(x, 1);
}

/** @param {number|null} level null of silence @returns {string} */
function formatDecibels(level) {
  return `${level === null ? "\u2212\u221e" : formatTenths(level)} dB`;
}

/**
 * @param {number} t seconds
 * @param {number} unit seconds of a frame or token
 * @returns {number} the number of the frame or token at that time
 */
function indexAt(t, unit) {
  return Math.floor(t / unit + 1e-6); // 0.58 / 0.02 is a little less than 29
}

class Controls {
  /**
   * @param {ShadowRoot} root with the markup of player.html
   * @param {PlayerData} data
   */
  constructor(root, data) {
    this.root = root;
    this.data = data;
    const names = data.traces.map((trace) => trace.name);
    this.find(".player").setAttribute("aria-label", `Player of ${names.join(", ")}`);
    this.find(".of").textContent = `/ ${formatSeconds(data.length)} s`;
    this.find(".overlay").setAttribute("aria-valuemax", data.length.toFixed(3));
    this.addTraceButtons();
    this.addWarnings();
  }

  /** @param {string} selector @returns {HTMLElement|null} the first in the markup */
  find(selector) {
    return this.root.querySelector(selector);
  }

  /** Copy a template of player.html. @param {string} name @param {string} text @returns {HTMLElement} */
  make(name, text) {
    const made = this.find(`template.${name}`).content.firstElementChild.cloneNode(true);
    made.textContent = text;
    return made;
  }

  addTraceButtons() {
    const traces = this.data.traces;
    const levelsMatched = traces.some((trace) => trace.gain_db !== 0);
    traces.forEach((trace, index) => {
      const letter = letterOf(index);
      const gain = levelsMatched ? ` ${formatDecibels(trace.gain_db)}` : "";
      const title = index < 9 ? `Hear and show ${letter} (${index + 1})` : ""; // keys 1 to 9
      this.addButton(`${letter}${gain} \u00b7 ${trace.name}`, title).dataset.trace = index;
      const option = this.make("option", letter);
      option.value = index;
      this.find(".reference").append(option);
    });
    this.find("[data-action=stack]").hidden = traces.length < 2;
    if (traces.length < 2) return;
    const blind = this.addButton("X", "Blind test: X is one of the traces (x)");
    blind.dataset.action = "blind";
    blind.setAttribute("aria-label", "X, blind test");
    this.addCandidates();
  }

  /** Whom X may be: all, or every pair. */
  addCandidates() {
    const letters = this.data.traces.map((_, index) => letterOf(index));
    const groups = [letters.map((_, index) => index)];
    if (letters.length > 2) {
      for (let i = 0; i < letters.length; i++) for (let k = i + 1; k < letters.length; k++) groups.push([i, k]);
    }
    groups.forEach((group, index) => {
      const text = index === 0 && letters.length > 2 ? "all" : group.map((i) => letters[i]).join(", ");
      const option = this.make("option", text);
      option.value = group.join();
      this.find(".candidates").append(option);
    });
  }

  /** @param {string} text @param {string} title @returns {HTMLButtonElement} */
  addButton(text, title) {
    const button = this.make("button", text);
    button.title = title;
    this.find(".choices").append(button);
    return button;
  }

  addWarnings() {
    const list = this.find(".warnings");
    for (const warning of this.data.warnings) list.append(this.make("warning", warning));
    list.hidden = this.data.warnings.length === 0;
  }

  /** @param {string} text for screen readers */
  announce(text) {
    this.find("[role=status]").textContent = text;
  }

  /** @param {boolean} playing */
  showPlaying(playing) {
    const button = this.find("[data-action=play]");
    button.setAttribute("aria-label", playing ? "Pause" : "Play");
    this.find(".play-icon").toggleAttribute("hidden", playing);
    this.find(".pause-icon").toggleAttribute("hidden", !playing);
  }

  /** @param {Range|null} region @param {boolean} looping */
  showLoop(region, looping) {
    const button = this.find("[data-action=loop]");
    const places = region && region[1] - region[0] < 0.1 ? 5 : 2; // decimals: a short one is told to the sample
    const ends = region?.map((t) => t.toFixed(places)).join("\u2013");
    const text = region ? `loop ${ends} s` : "loop";
    if (button.textContent !== text) button.textContent = text;
    button.setAttribute("aria-pressed", looping);
  }

  /**
   * Show the position, and what lies under the pointer or else at the position.
   *
   * @param {number} position seconds
   * @param {number|null} pointer seconds
   * @param {Trace|null} trace null while it is hidden
   * @param {Range|null} region
   * @param {boolean} isFine whether single samples can be told apart
   */
  showPosition(position, pointer, trace, region, isFine) {
    this.find(".time b").textContent = formatSeconds(position);
    const t = pointer ?? position;
    const frame = indexAt(t, this.data.frame_seconds);
    const token = indexAt(t, this.data.token_seconds);
    const parts = [`${formatFixed(t, isFine ? 5 : 3)} s`, `frame ${frame}`, `token ${token}`];
    const hz = trace?.f0[frame];
    if (hz !== undefined) parts.push(`f0 ${hz > 0 ? `${hz.toFixed(0)} Hz` : "unvoiced"}`);
    const sample = trace ? Math.round(t * trace.rate) : -1;
    if (trace && sample < trace.samples.length) {
      parts.push(`sample ${sample}: ${formatFixed(trace.samples[sample] / FULL_SCALE, 4)}`);
    }
    if (region) parts.push(`region ${formatFixed(1000 * (region[1] - region[0]), 2)} ms`);
    this.find(".pointer").textContent = parts.join(" \u00b7 ");
  }

  /** @param {number} position seconds, for screen readers */
  showSlider(position) {
    const slider = this.find(".overlay");
    slider.setAttribute("aria-valuenow", position.toFixed(3));
    slider.setAttribute("aria-valuetext", `${formatSeconds(position)} of ${formatSeconds(this.data.length)} seconds`);
  }

  /** @param {number} gain of the waveform's height */
  showHeight(gain) {
    const button = this.find("[data-action=height]");
    button.textContent = `\u2195 \u00d7${gain}`;
    button.setAttribute("aria-label", `Height of the waveform's picture, times ${gain}`);
  }

  /**
   * @param {number} index of the trace that is heard
   * @param {boolean} hearsX whether that is hidden
   * @param {BlindTest|null} test that goes on
   */
  showChoice(index, hearsX, test) {
    for (const button of this.root.querySelectorAll("[data-trace]")) {
      button.setAttribute("aria-pressed", !hearsX && Number(button.dataset.trace) === index);
    }
    this.find("[data-action=blind]")?.setAttribute("aria-pressed", hearsX);
    this.find("[data-action=save]").disabled = hearsX;
    this.find(".blind").hidden = !test;
    if (!test) return;
    const letters = test.candidates.map(letterOf).join(", ");
    this.find(".question").textContent = `Trial ${test.trials.length + 1} of ${test.planned}: X is one of ${letters}. X is`;
    this.find(".caution").textContent = test.caution;
    const answers = test.candidates.map((candidate) => {
      const button = this.make("chip", letterOf(candidate));
      button.dataset.answer = candidate;
      return button;
    });
    const row = this.find(".answers");
    const isSame = row.textContent === test.candidates.map(letterOf).join("");
    if (!isSame) row.replaceChildren(...answers); // the focus stays where the buttons stay
  }

  /** @param {BlindTest|null} test that has ended */
  showOutcome(test) {
    this.find(".outcome").hidden = !test;
    this.find(".result").textContent = test ? `Blind test: ${test.line}` : "";
  }

  /** @param {Picture} picture @param {boolean} stacked @param {boolean} linked */
  showRows(picture, stacked, linked) {
    for (const button of this.root.querySelectorAll("[data-row]")) {
      button.hidden = !picture.has(button.dataset.row);
      button.setAttribute("aria-pressed", picture.rows.has(button.dataset.row));
    }
    this.find(".for-spectrogram").hidden = !picture.rows.has("spectrogram");
    this.find(".for-difference").hidden = !picture.rows.has("difference");
    this.find("[data-action=stack]").setAttribute("aria-pressed", stacked);
    this.find("[data-action=link]").setAttribute("aria-pressed", linked);
  }

  /**
   * @param {Trace|null} trace null while it is hidden
   * @param {string[]} rows that are drawn
   * @param {string} difference to the reference in words; empty where it is not drawn
   */
  showLevels(trace, rows, difference) {
    const label = trace ? `Rows over time of ${trace.name}: ${rows.join(", ")}; mel from ${trace.mel_from}${difference && `; ${difference}`}` : "hidden";
    this.find(".base").setAttribute("aria-label", label);
    this.find(".levels").textContent = trace ? this.describeLevels(trace) : "X: levels are hidden";
  }

  /** @param {Trace} trace @returns {string} */
  describeLevels(trace) {
    const parts = [
      `${trace.rate} Hz PCM16`,
      `peak ${formatDecibels(trace.peak_db)}FS`,
      `RMS ${formatDecibels(trace.rms_db)}FS`,
      `gain ${formatDecibels(trace.gain_db)}`,
      `${trace.clipped} clipped at \u00b1${this.data.limit}`,
      `mel ${this.data.mel_range.map(formatTenths).join(" to ")} ln`,
    ];
    return parts.join(" \u00b7 ");
  }

  /**
   * @param {Finding[]} findings of the trace that is shown; empty while it is hidden
   * @param {number} chosen index, or -1
   * @param {(kind: string) => string} colourOf
   */
  showFindings(findings, chosen, colourOf) {
    this.find(".findings").hidden = findings.length === 0;
    this.find(".count").textContent = `${findings.length} found`;
    const chips = findings.map((finding, index) => {
      const button = this.make("chip", finding.text);
      button.dataset.finding = index;
      button.setAttribute("aria-pressed", index === chosen);
      button.style.borderLeftColor = colourOf(finding.kind);
      return button;
    });
    const row = this.find(".chips");
    row.replaceChildren(...chips);
    if (chips[chosen]) row.scrollLeft = chips[chosen].offsetLeft - row.offsetLeft - 40; // pixels from the left
  }
}
