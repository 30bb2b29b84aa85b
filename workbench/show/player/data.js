/*
The payload that payload.py makes: its types, and how the sound is decoded.
*/

/** @typedef {[number, number]} Range start and end in seconds */

/** @typedef {{kind: string, start: number, end: number, text: string}} Finding times in seconds */

/**
 * @typedef {object} Trace
 * @property {string} name
 * @property {string} wav PCM16 as a data address
 * @property {string} mel PNG as a data address, one pixel a frame and bin
 * @property {string} mel_from what the mel was computed from
 * @property {number[]} f0 Hz of every frame, 0 where it is unvoiced
 * @property {Finding[]} findings
 * @property {number} rate Hz
 * @property {number|null} peak_db of full scale
 * @property {number|null} rms_db of full scale
 * @property {number} gain_db that matches the levels of all traces, else 0
 * @property {number} clipped samples
 *
 * Added by `decode`: bytes (ArrayBuffer), samples (Int16Array), gain (a factor), picture (HTMLImageElement).
 */

/**
 * @typedef {object} PlayerData
 * @property {Trace[]} traces
 * @property {string[]} warnings
 * @property {number} bins of the mel
 * @property {[number, string][]} ticks mel bin and label
 * @property {Range} mel_range ln, darkest and brightest
 * @property {number} frame_seconds of a mel frame
 * @property {number} token_seconds of a speech token
 *
 * Added by `decode`: kinds (string[], of findings), length (seconds of the longest trace).
 */

const WAV_HEADER_BYTES = 44; // payload.py writes the plain header

/**
 * @param {PlayerData} payload
 * @returns {PlayerData} with samples, kinds and length
 */
function decode(payload) {
  const traces = payload.traces.map((trace) => {
    const text = atob(trace.wav.slice(trace.wav.indexOf(",") + 1));
    const bytes = Uint8Array.from(text, (character) => character.charCodeAt(0)).buffer;
    return { ...trace, bytes, samples: new Int16Array(bytes, WAV_HEADER_BYTES), gain: 10 ** (trace.gain_db / 20) };
  });
  const kinds = new Set(traces.flatMap((trace) => trace.findings.map((finding) => finding.kind)));
  const length = Math.max(...traces.map((trace) => trace.samples.length / trace.rate));
  return { ...payload, traces, kinds: [...kinds], length };
}
