/*
The payload that payload.py makes: its types, how the sound is decoded, and how files leave the page.
*/

/** @typedef {[number, number]} Range start and end in seconds */

/** @typedef {{kind: string, start: number, end: number, text: string}} Finding times in seconds */

/**
 * @typedef {object} Trace
 * @property {string} id of the waveform: equal in every player, figure and widget of the same sound
 * @property {string} name
 * @property {string} text that was spoken; empty where it is not known
 * @property {number} seconds
 * @property {string} sound FLAC of 16 bits as a data address
 * @property {string} mel PNG as a data address, one pixel a frame and bin
 * @property {string} mel_from what the mel was computed from
 * @property {number[]} f0 Hz of every frame, 0 where it is unvoiced
 * @property {number[]} tokens ids of the speech tokens
 * @property {Finding[]} findings
 * @property {number} rate Hz
 * @property {number|null} peak_db of full scale
 * @property {number|null} rms_db of full scale
 * @property {number|null} lufs integrated loudness
 * @property {number} gain_db that matches the levels of all traces, else 0
 * @property {number} clipped samples at or beyond the vocoder's limit
 *
 * Added by `decode`: bytes (ArrayBuffer), samples (Int16Array), gain (a factor), picture (HTMLImageElement),
 * lanes (a number for each finding) and laneKinds (the kind of each lane).
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
 * @property {number} limit of the vocoder, a share of full scale
 * @property {number} min_correlation from which a delay between two sounds is believed
 * @property {number[]} silent_tokens ids
 * @property {string} colours 256 colours of the spectrogram, as base64 of red, green, blue
 *
 * Added by `decode`: kinds (string[], of findings), length (seconds of the longest trace), maxRate (Hz).
 */

const FULL_SCALE = 32768; // of a PCM16 sample
const MAX_KIND_LANES = 4; // of findings of one kind that overlap; later ones share the last
const LANE_RESOLUTION = 250; // findings nearer than this share of the length get lanes of their own

/**
 * @param {string} text base64
 * @returns {Uint8Array}
 */
function bytesOf(text) {
  const characters = atob(text);
  const bytes = new Uint8Array(characters.length); // a loop, since `from` takes ten times as long
  for (let i = 0; i < bytes.length; i++) bytes[i] = characters.charCodeAt(i);
  return bytes;
}

/**
 * Decode all sounds and pictures.
 *
 * @param {PlayerData} payload
 * @returns {Promise<PlayerData>}
 */
async function decode(payload) {
  const length = Math.max(...payload.traces.map((trace) => trace.seconds));
  const traces = await Promise.all(payload.traces.map((trace) => decodeTrace(trace, length)));
  const kinds = new Set(traces.flatMap((trace) => trace.findings.map((finding) => finding.kind)));
  return { ...payload, traces, kinds: [...kinds], length, maxRate: Math.max(...traces.map((trace) => trace.rate)) };
}

async function decodeTrace(trace, length) {
  const bytes = bytesOf(trace.sound.slice(trace.sound.indexOf(",") + 1)).buffer;
  const picture = new Image();
  picture.src = trace.mel;
  const decoding = new OfflineAudioContext(1, 1, trace.rate).decodeAudioData(bytes.slice(0)); // at its own rate
  const [buffer] = await Promise.all([decoding, picture.decode()]);
  const samples = toPCM16(buffer.getChannelData(0));
  return { ...trace, bytes, samples, picture, gain: 10 ** (trace.gain_db / 20), ...findLanes(trace.findings, length) };
}

/**
 * Return the 16 bits that were encoded. Browsers divide by 32768, or positive ones by 32767: the factor that leaves
 * whole numbers is the one that was used.
 *
 * @param {Float32Array} decoded
 * @returns {Int16Array}
 */
function toPCM16(decoded) {
  const errors = [FULL_SCALE - 1, FULL_SCALE].map((factor) => {
    let error = 0;
    for (let i = 0; i < Math.min(decoded.length, 48000); i++) {
      if (decoded[i] > 0) error += Math.abs(decoded[i] * factor - Math.round(decoded[i] * factor));
    }
    return error;
  });
  const positive = errors[0] < errors[1] ? FULL_SCALE - 1 : FULL_SCALE;
  const samples = new Int16Array(decoded.length);
  for (let i = 0; i < samples.length; i++) {
    samples[i] = Math.round(decoded[i] * (decoded[i] > 0 ? positive : FULL_SCALE));
  }
  return samples;
}

/**
 * Give findings lanes so that none hides another: each kind has lanes of its own, as many as overlap.
 *
 * @param {Finding[]} findings in order of their start
 * @param {number} length seconds
 * @returns {{lanes: number[], laneKinds: string[]}}
 */
function findLanes(findings, length) {
  const ends = new Map(); // kind -> the time at which each of its lanes is free again
  const places = findings.map(({ kind, start, end }) => {
    if (!ends.has(kind)) ends.set(kind, []);
    const own = ends.get(kind);
    let lane = own.findIndex((free) => free <= start);
    if (lane < 0) lane = Math.min(own.length, MAX_KIND_LANES - 1);
    own[lane] = Math.max(own[lane] ?? 0, end, start + length / LANE_RESOLUTION);
    return { kind, lane };
  });
  const laneKinds = [...ends].flatMap(([kind, own]) => own.map(() => kind));
  return { lanes: places.map(({ kind, lane }) => laneKinds.indexOf(kind) + lane), laneKinds };
}

/**
 * Return a PCM16 file. Its format is "extensible" without a place for any channel, so that no browser mixes channels.
 *
 * @param {Int16Array[]} channels of one length
 * @param {number} rate Hz
 * @returns {Blob}
 */
function wavFile(channels, rate) {
  const count = channels.length;
  const size = channels[0].length * count * 2; // bytes of the samples
  const head = new DataView(new ArrayBuffer(68));
  const text = (at, word) => [...word].forEach((letter, i) => head.setUint8(at + i, letter.charCodeAt(0)));
  text(0, "RIFF");
  head.setUint32(4, 60 + size, true);
  text(8, "WAVEfmt ");
  head.setUint32(16, 40, true); // bytes of the format
  head.setUint16(20, 0xfffe, true); // extensible
  head.setUint16(22, count, true);
  head.setUint32(24, rate, true);
  head.setUint32(28, rate * count * 2, true);
  head.setUint16(32, count * 2, true);
  head.setUint16(34, 16, true); // bits
  head.setUint16(36, 22, true); // bytes of the extension
  head.setUint16(38, 16, true);
  head.setUint32(40, count === 1 ? 4 : 0, true); // one channel is the centre
  new Uint8Array(head.buffer).set([1, 0, 0, 0, 0, 0, 16, 0, 128, 0, 0, 170, 0, 56, 155, 113], 44); // PCM
  text(60, "data");
  head.setUint32(64, size, true);
  const joined = new Int16Array(channels[0].length * count);
  channels.forEach((samples, channel) => samples.forEach((value, i) => (joined[i * count + channel] = value)));
  return new Blob([head, joined], { type: "audio/wav" });
}

/** Let the browser save a file. @param {string} name @param {Blob} content */
function saveFile(name, content) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content);
  link.download = name.replace(/[^\p{L}\p{N}._-]+/gu, "-").replace(/^[-.]+/, "") || "file";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000); // once the browser has read it
}

/**
 * Save a trace as wav, or a region of it.
 *
 * @param {Trace} trace
 * @param {string} letter
 * @param {Range|null} region
 */
function saveTrace({ samples, rate, name }, letter, region) {
  const [start, end] = region ? region.map((t) => Math.round(t * rate)) : [0, samples.length];
  const stem = name.split(/[\\/]/).at(-1).replace(/\.[a-z0-9]+$/i, "").slice(0, 60); // of a path
  const place = region ? `-${region[0].toFixed(3)}-${region[1].toFixed(3)}s` : "";
  saveFile(`${letter}-${stem}${place}.wav`, wavFile([samples.slice(start, end)], rate));
}

/**
 * Hold the load event of the page until the returned function is called: a browser that prints a page from the shell
 * (`--print-to-pdf`) waits for that event, and the sound is decoded after the script has run. A frame whose document
 * is open counts as loading.
 *
 * @returns {() => void}
 */
function holdLoading() {
  if (document.readyState === "complete") return () => {};
  const frame = document.createElement("iframe");
  frame.hidden = true;
  document.body.append(frame);
  frame.contentDocument.open();
  return () => {
    frame.contentDocument?.close();
    frame.remove();
  };
}
