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

/** @param {number} x @returns {string} one decimal, with a typographic minus */
function formatTenths(x) {
  return (x < 0 ? "\u2212" : "") + Math.abs(x).toFixed(1);
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

  /** @param {string} selector @returns {HTMLElement|null} */
  find(selector) {
    return this.root.querySelector(selector);
  }

  addTraceButtons() {
    const traces = this.data.traces;
    const levelsMatched = traces.some((trace) => trace.gain_db !== 0);
    traces.forEach((trace, index) => {
      const letter = letterOf(index);
      const gain = levelsMatched ? ` ${formatDecibels(trace.gain_db)}` : "";
      const title = index < 9 ? `Hear and show ${letter} (${index + 1})` : ""; // keys 1 to 9
      this.addButton(`${letter}${gain} \u00b7 ${trace.name}`, title).dataset.trace = index;
    });
    if (traces.length < 2) return;
    const blind = this.addButton("X", "Blind: A or B, nobody knows which (x)");
    blind.dataset.action = "blind";
    blind.setAttribute("aria-label", "X, blind");
    this.addButton("reveal", "Say which one X is").dataset.action = "reveal";
  }

  /** @param {string} text @param {string} title @returns {HTMLButtonElement} */
  addButton(text, title) {
    const button = document.createElement("button");
    button.className = "name";
    button.textContent = text;
    button.title = title;
    this.find(".choices").append(button);
    return button;
  }

  addWarnings() {
    const list = this.find(".warnings");
    for (const warning of this.data.warnings) {
      const line = document.createElement("li");
      line.textContent = warning;
      list.append(line);
    }
    list.hidden = this.data.warnings.length === 0;
  }

  /** @param {string} text for screen readers */
  announce(text) {
    this.find("[role=status]").textContent = text;
  }

  /** @param {object} colours a palette @param {boolean} dark */
  setColours(colours, dark) {
    const style = this.find(".player").style;
    for (const name of ["back", "panel", "ink", "soft", "line", "edge", "cursor"]) {
      style.setProperty(`--${name}`, colours[name]);
    }
    style.colorScheme = dark ? "dark" : "light";
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
    const ends = region?.map((t) => t.toFixed(2)).join("\u2013");
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
   */
  showPosition(position, pointer, trace) {
    this.find(".time b").textContent = formatSeconds(position);
    const t = pointer ?? position;
    const frame = indexAt(t, this.data.frame_seconds);
    const token = indexAt(t, this.data.token_seconds);
    const parts = [`${formatSeconds(t)} s`, `frame ${frame}`, `token ${token}`];
    const hz = trace?.f0[frame];
    if (hz !== undefined) parts.push(`f0 ${hz > 0 ? `${hz.toFixed(0)} Hz` : "\u2013"}`);
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

  /** @param {number} index of the trace that is heard @param {boolean} blind whether that is hidden */
  showChoice(index, blind) {
    for (const button of this.root.querySelectorAll("[data-trace]")) {
      button.setAttribute("aria-pressed", !blind && Number(button.dataset.trace) === index);
    }
    this.find("[data-action=blind]")?.setAttribute("aria-pressed", blind);
    this.find("[data-action=reveal]")?.toggleAttribute("hidden", !blind);
  }

  /** @param {Trace|null} trace null while it is hidden */
  showLevels(trace) {
    const label = trace ? `Waveform, mel and f0 of ${trace.name}; mel from ${trace.mel_from}` : "hidden";
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
      `${trace.clipped} clipped`,
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
      const button = document.createElement("button");
      button.dataset.finding = index;
      button.textContent = finding.text;
      button.setAttribute("aria-pressed", index === chosen);
      button.style.borderLeftColor = colourOf(finding.kind);
      return button;
    });
    const row = this.find(".chips");
    row.replaceChildren(...chips);
    if (chips[chosen]) row.scrollLeft = chips[chosen].offsetLeft - row.offsetLeft - 40; // pixels from the left
  }
}
