/*
Playback. All traces start together from one clock and all but one of them are silent, so a change of trace
has no gap.
*/

const FADE_S = 0.005; // seconds of a cross-fade: a shorter one clicks, a longer one smears the comparison
const START_DELAY_S = 0.01; // seconds from a call to the first sample, so that all sources start together

class Sound {
  /**
   * @param {Trace[]} traces
   * @param {number} length seconds of the longest trace
   */
  constructor(traces, length) {
    this.traces = traces;
    this.length = length;
    this.heard = 0; // index of the trace that is heard
    this.pausedAt = 0; // seconds, the position while nothing plays
    this.playback = null; // the nodes that play now, set by `start`
    this.onend = () => {};
  }

  /**
   * Decode all traces at their own rate, not the device's: the browser resamples what leaves the context better
   * than what is played inside it.
   */
  async open() {
    const sampleRate = Math.max(...this.traces.map((trace) => trace.rate));
    const context = new AudioContext({ sampleRate });
    const decoded = await Promise.all(this.traces.map((trace) => context.decodeAudioData(trace.bytes.slice(0))));
    // Equal lengths: a short trace is followed by silence, so that the end of the longest is the end of all.
    this.buffers = decoded.map((short) => {
      const buffer = context.createBuffer(1, Math.ceil(this.length * sampleRate) + 1, sampleRate);
      buffer.copyToChannel(short.getChannelData(0), 0);
      return buffer;
    });
    this.context = context;
  }

  /** Open the sound on the first call; browsers allow that only after a click or a key. */
  async prepare() {
    await (this.ready ??= this.open());
    await this.context.resume();
  }

  /**
   * Play all traces, with only the chosen one audible.
   *
   * @param {number} from seconds
   * @param {Range|null} loop the region to repeat
   */
  start(from, loop) {
    this.stop();
    const context = this.context;
    const when = context.currentTime + START_DELAY_S;
    const output = new GainNode(context, { gain: 0 });
    output.gain.setValueAtTime(0, when);
    output.gain.linearRampToValueAtTime(1, when + FADE_S);
    output.connect(context.destination);
    const gains = [];
    const sources = [];
    this.traces.forEach((trace, index) => {
      const gain = new GainNode(context, { gain: index === this.heard ? trace.gain : 0 });
      const buffer = loop ? this.cutLoop(this.buffers[index], loop) : this.buffers[index];
      const source = new AudioBufferSourceNode(context, { buffer, loop: Boolean(loop) });
      source.connect(gain).connect(output);
      source.start(when, loop ? from - loop[0] : from);
      gains.push(gain);
      sources.push(source);
    });
    const playback = { when, from, loop, output, gains, sources };
    sources[0].onended = () => {
      if (this.playback !== playback) return; // stopped or restarted before its end
      this.playback = null;
      this.pausedAt = this.length;
      this.onend();
    };
    this.playback = playback;
  }

  /**
   * Copy the loop with both ends faded: an unfaded seam would click like the faults that users search for.
   *
   * @param {AudioBuffer} whole
   * @param {Range} loop
   * @returns {AudioBuffer}
   */
  cutLoop(whole, [start, end]) {
    const rate = whole.sampleRate;
    const samples = whole.getChannelData(0).slice(Math.round(start * rate), Math.round(end * rate));
    const fade = Math.min(Math.round(FADE_S * rate), samples.length >> 1);
    for (let i = 0; i < fade; i++) {
      samples[i] *= i / fade;
      samples[samples.length - 1 - i] *= i / fade;
    }
    const buffer = this.context.createBuffer(1, samples.length, rate);
    buffer.copyToChannel(samples, 0);
    return buffer;
  }

  /** Fade out and stop; the position is kept. */
  stop() {
    if (!this.playback) return;
    this.pausedAt = this.position;
    const { output, sources } = this.playback;
    const now = this.context.currentTime;
    const end = now + START_DELAY_S + FADE_S;
    output.gain.cancelScheduledValues(now);
    output.gain.setValueAtTime(output.gain.value, now);
    output.gain.linearRampToValueAtTime(0, end);
    sources.forEach((source) => source.stop(end));
    this.playback = null;
  }

  /**
   * Cross-fade to another trace at the same position.
   *
   * @param {number} index
   */
  choose(index) {
    this.heard = index;
    if (!this.playback) return;
    const now = this.context.currentTime;
    this.playback.gains.forEach(({ gain }, i) => {
      gain.cancelScheduledValues(now);
      gain.setValueAtTime(gain.value, now);
      gain.linearRampToValueAtTime(i === index ? this.traces[i].gain : 0, now + FADE_S);
    });
  }

  /** @returns {boolean} */
  get playing() {
    return this.playback !== null;
  }

  /**
   * Seconds that are audible now: the context's clock less the delay of the output device.
   *
   * @returns {number}
   */
  get position() {
    if (!this.playback) return this.pausedAt;
    const { when, from, loop } = this.playback;
    const elapsed = Math.max(0, this.context.currentTime - when - (this.context.outputLatency || 0));
    if (!loop) return Math.min(from + elapsed, this.length);
    return loop[0] + ((from - loop[0] + elapsed) % (loop[1] - loop[0]));
  }

  close() {
    this.stop();
    this.ready?.then(() => this.context.close());
  }
}
