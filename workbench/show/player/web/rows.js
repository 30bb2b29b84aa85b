/*
The rows of a trace: how each of them is drawn into its lane. `Lane` is what a painter is given.
*/

/**
 * @typedef {object} Lane
 * @property {CanvasRenderingContext2D} g clipped to the lane
 * @property {TimeAxis} axis
 * @property {object} colours
 * @property {PlayerData} data
 * @property {number} top pixels
 * @property {number} height pixels
 * @property {number} gain of the waveform's height; never of its sound
 */

const POINTS_FROM = 5; // pixels between samples from which each is drawn as a point
const LINE_FROM = 1 / 3; // pixels between samples from which a line joins them
const MAX_F0 = 1000; // Hz, the highest top of the axis; voices stay far below
const FINDING_LANE = 9; // pixels

/** The rows in the order in which they stand below one another. Heights in pixels: alone, and of stacked traces. */
const ROWS = [
  { name: "wave", heights: [88, 60] },
  { name: "findings", heights: [0, 0] }, // as high as its lanes
  { name: "difference", heights: [64, 44] },
  { name: "spectrogram", heights: [124, 84] },
  { name: "mel", heights: [112, 72] },
  { name: "f0", heights: [56, 40] },
  { name: "tokens", heights: [32, 32] },
];

/**
 * Draw samples: as an envelope, a line, or points with stems, by how far apart they lie.
 *
 * @param {Lane} lane
 * @param {Int16Array|Float32Array} samples
 * @param {number} rate Hz
 * @param {number} scale of a sample to -1 to 1
 * @param {number} limit of a sample from which it is drawn as clipped
 */
function drawSamples({ g, axis, colours, top, height }, samples, rate, scale, limit) {
  const half = height / 2;
  const middle = top + half;
  const y = (sample) => middle - clamp(sample * scale, -1, 1) * (half - 1);
  const colour = g.fillStyle;
  g.strokeStyle = colours.line;
  g.lineWidth = 1;
  g.beginPath();
  g.moveTo(GUTTER, Math.round(middle) + 0.5);
  g.lineTo(axis.right, Math.round(middle) + 0.5);
  g.stroke();
  const pixels = axis.span / (axis.duration * rate); // between samples
  const first = Math.max(0, Math.floor(axis.view[0] * rate));
  const last = Math.min(Math.ceil(axis.view[1] * rate), samples.length - 1);
  if (pixels < LINE_FROM) {
    const column = 1 / (window.devicePixelRatio || 1);
    for (let x = GUTTER; x < axis.right; x += column) {
      const start = Math.floor(axis.t(x) * rate);
      const end = Math.min(Math.max(Math.ceil(axis.t(x + column) * rate), start + 1), samples.length);
      let low = Infinity;
      let high = -Infinity;
      for (let i = start; i < end; i++) {
        if (samples[i] < low) low = samples[i];
        if (samples[i] > high) high = samples[i];
      }
      if (low > high) continue; // beyond the end, or NaN
      g.fillStyle = high >= limit || low <= -limit ? colours.clip : colour;
      g.fillRect(x, y(high), column, Math.max(y(low) - y(high), 1));
    }
    return;
  }
  g.strokeStyle = colour;
  g.lineWidth = 1.25;
  g.beginPath();
  for (let i = first; i <= last; i++) g.lineTo(axis.x(i / rate), y(samples[i]));
  g.stroke();
  const showsPoints = pixels >= POINTS_FROM;
  const radius = clamp(pixels / 5, 1.5, 3.5);
  for (let i = first; i <= last; i++) {
    const isClipped = Math.abs(samples[i]) >= limit;
    if (!showsPoints && !isClipped) continue;
    const x = axis.x(i / rate);
    g.fillStyle = isClipped ? colours.clip : colour;
    g.fillRect(x - 0.5, Math.min(y(samples[i]), middle), 1, Math.abs(y(samples[i]) - middle));
    g.beginPath();
    g.arc(x, y(samples[i]), radius, 0, 2 * Math.PI);
    g.fill();
  }
}

/** @param {Lane} lane @param {Trace} trace */
function drawWave(lane, trace) {
  lane.g.fillStyle = lane.colours.wave;
  const limit = Math.round(lane.data.limit * FULL_SCALE); // as PCM16
  drawSamples(lane, trace.samples, trace.rate, lane.gain / FULL_SCALE, limit);
}

/** @param {Lane} lane @param {Trace} trace @param {Difference} difference */
function drawDifference(lane, trace, difference) {
  const { g, colours } = lane;
  if (!difference.samples) {
    drawNote(lane, difference.text);
    return;
  }
  g.fillStyle = colours.difference;
  drawSamples(lane, difference.samples, trace.rate, 1 / difference.scale, Infinity);
  g.textAlign = "left";
  g.font = "10.5px system-ui, sans-serif";
  drawTag(lane, difference.text, GUTTER + 4, lane.top + lane.height - 9);
}

/** @param {Lane} lane @param {string} text in the middle */
function drawNote({ g, axis, colours, top, height }, text) {
  g.fillStyle = colours.soft;
  g.textAlign = "center";
  g.textBaseline = "middle";
  g.font = "11px system-ui, sans-serif";
  g.fillText(text, GUTTER + axis.span / 2, top + height / 2, axis.span);
}

/** Text on a ground of its own. */
function drawTag({ g, axis, colours }, text, x, y) {
  const width = Math.min(g.measureText(text).width, axis.right - x - 6);
  g.globalAlpha = 0.85;
  g.fillStyle = colours.back;
  g.fillRect(x - 3, y - 8, width + 6, 15);
  g.globalAlpha = 1;
  g.fillStyle = colours.ink;
  g.textBaseline = "middle";
  g.textAlign = "left";
  g.fillText(text, x, y, width);
}

/** @param {Lane} lane @param {Trace} trace */
function drawMel({ g, axis, data, top, height }, trace) {
  const frame = data.frame_seconds;
  g.imageSmoothingEnabled = axis.x(frame) - axis.x(0) < 3; // a sharp block per frame once it is wide enough
  // Only the visible frames: a canvas does not take the width of the whole at the closest zoom.
  const first = Math.max(0, Math.floor(axis.view[0] / frame) - 1);
  const last = Math.min(trace.picture.naturalWidth, Math.ceil(axis.view[1] / frame) + 1);
  if (last <= first) return;
  const left = axis.x(first * frame);
  const right = axis.x(last * frame);
  g.drawImage(trace.picture, first, 0, last - first, trace.picture.naturalHeight, left, top, right - left, height);
}

/** @param {Lane} lane @param {Trace} trace @param {number} f0Top Hz */
function drawF0({ g, axis, colours, data, top, height }, trace, f0Top) {
  g.strokeStyle = g.fillStyle = colours.f0;
  g.lineWidth = 1.5;
  g.beginPath();
  let connected = false; // whether the frame before is voiced
  trace.f0.forEach((hz, frame) => {
    const x = axis.x((frame + 0.5) * data.frame_seconds);
    const y = top + height - clamp(hz / f0Top, 0, 1) * (height - 2);
    if (hz > 0 && connected) g.lineTo(x, y);
    else if (hz > 0) g.moveTo(x, y);
    const nextIsVoiced = trace.f0[frame + 1] > 0;
    if (hz > 0 && !connected && !nextIsVoiced) g.fillRect(x - 1.25, y - 1.25, 2.5, 2.5); // one that stands alone
    connected = hz > 0;
  });
  g.stroke();
}

/** Cells of the speech tokens with their ids, and below them the text. @param {Lane} lane @param {Trace} trace */
function drawTokens({ g, axis, colours, data, top }, trace) {
  const unit = data.token_seconds;
  const height = 16; // pixels of a cell
  const width = axis.x(unit) - axis.x(0);
  const silent = new Set(data.silent_tokens);
  g.font = "10px system-ui, sans-serif";
  g.textAlign = "center";
  g.textBaseline = "middle";
  const last = Math.min(trace.tokens.length, Math.ceil(axis.view[1] / unit));
  for (let i = Math.max(0, Math.floor(axis.view[0] / unit)); i < last; i++) {
    const x = axis.x(i * unit);
    g.globalAlpha = silent.has(trace.tokens[i]) ? 0.15 : i % 2 ? 0.35 : 0.5;
    g.fillStyle = colours.wave;
    g.fillRect(x, top, Math.max(width - (width > 4 ? 1 : 0), 0.5), height - 1);
    g.globalAlpha = 1;
    g.fillStyle = colours.ink;
    const centre = clamp(x + width / 2, GUTTER + 16, axis.right - 16); // of a token wider than the view, too
    if (width >= 30) g.fillText(String(trace.tokens[i]), width > axis.span / 2 ? centre : x + width / 2, top + height / 2);
  }
  g.textAlign = "left";
  g.fillStyle = colours.soft;
  const words = trace.text ? `\u201c${trace.text}\u201d (a run holds no times of words)` : "no text is known";
  g.fillText(words, GUTTER + 4, top + height + 8, axis.span - 8);
}

/** @param {Lane} lane @param {Trace} trace @param {(kind: string) => string} colourOf @param {number} chosen */
function drawFindings({ g, axis, colours, top }, trace, colourOf, chosen) {
  trace.findings.forEach((finding, index) => {
    const left = axis.x(finding.start);
    const right = axis.x(finding.end);
    if (right < GUTTER - 3 || left > axis.right + 3) return;
    const width = Math.max(right - left, 3);
    const y = top + trace.lanes[index] * FINDING_LANE;
    g.fillStyle = colourOf(finding.kind);
    g.fillRect((left + right - width) / 2, y + 1, width, FINDING_LANE - 2);
    if (index !== chosen) return;
    g.strokeStyle = colours.ink;
    g.lineWidth = 1.5;
    g.strokeRect((left + right - width) / 2, y + 1, width, FINDING_LANE - 2);
  });
}
