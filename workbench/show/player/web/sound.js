/*
Playback. All traces start together from one clock and all but one of them are silent, so a change of trace
has no gap.

At the speed 1 every trace is a buffer source. At other speeds the pitch has to stay, which sources cannot do and
media elements can (`preservesPitch`). Several elements would run from several clocks; so one element plays one
file that holds each trace as a channel, and the browser stretches all of them alike. A change of trace then still
has no gap. Only the seam of a loop may have one there, since elements loop less exactly than sources.
*/

const FADE_S = 0.005; // seconds of a cross-fade: a shorter one clicks, a longer one smears the comparison
const START_DELAY_S = 0.01; // seconds from a call to the first sample, so that all sources start together
const CONTEXT_RATES = [8000, 96000]; // Hz that every browser can play

class Sound {
  /** @param {PlayerData} data */
  constructor(data) {
    this.traces = data.traces;
    this.length = data.length;
    this.sampleRate = clamp(data.maxRate, ...CONTEXT_RATES);
    this.heard = 0; // index of the trace that is heard
    this.pausedAt = 0; // seconds, the position while nothing plays
    this.volume = 1;
    this.speed = 1;
    this.playback = null; // the nodes that play now, set by `start`
    this.onend = () => {};
  }

  /**
   * Decode all traces at their own rate, not the device's: the browser resamples what leaves the context better
   * than what is played inside it.
   */
  async open() {
    const context = new AudioContext({ sampleRate: this.sampleRate });
    const decoded = await Promise.all(this.traces.map((trace) => context.decodeAudioData(trace.bytes.slice(0))));
    // Equal lengths: a short trace is followed by silence, so that the end of the longest is the end of all.
    this.buffers = decoded.map((short) => {
      const buffer = context.createBuffer(1, Math.ceil(this.length * this.sampleRate) + 1, this.sampleRate);
      buffer.copyToChannel(short.getChannelData(0), 0);
      return buffer;
    });
    this.context = context;
    this.master = new GainNode(context, { gain: this.volume });
    this.master.connect(context.destination);
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
    output.connect(this.master);
    const gains = this.traces.map((trace, index) => {
      const gain = new GainNode(context, { gain: index === this.heard ? trace.gain : 0 });
      gain.connect(output);
      return gain;
    });
    const playback = { when, from, loop, output, gains, halt: null, element: null };
    const onended = () => {
      if (this.playback !== playback) return; // stopped or restarted before its end
      this.playback = null;
      this.pausedAt = this.length;
      this.onend();
    };
    const buffers = loop ? this.buffers.map((buffer) => this.cutLoop(buffer, loop)) : this.buffers;
    const offset = loop ? from - loop[0] : from;
    this.playback = playback;
    if (this.speed === 1) this.startSources(playback, buffers, offset, onended);
    else this.startElement(playback, buffers, offset, onended);
  }

  startSources(playback, buffers, offset, onended) {
    const sources = buffers.map((buffer, index) => {
      const source = new AudioBufferSourceNode(this.context, { buffer, loop: Boolean(playback.loop) });
      source.connect(playback.gains[index]);
      source.start(playback.when, offset);
      return source;
    });
    sources[0].onended = onended;
    playback.halt = (end) => sources.forEach((source) => source.stop(end));
  }

  startElement(playback, buffers, offset, onended) {
    const channels = buffers.map((buffer) => {
      return Int16Array.from(buffer.getChannelData(0), (value) => Math.round(value * (FULL_SCALE - 1)));
    });
    const element = new Audio(URL.createObjectURL(wavFile(channels, this.sampleRate)));
    element.preservesPitch = true;
    element.defaultPlaybackRate = element.playbackRate = this.speed;
    element.loop = Boolean(playback.loop);
    element.currentTime = offset;
    element.onended = onended;
    const splitter = new ChannelSplitterNode(this.context, { numberOfOutputs: channels.length });
    new MediaElementAudioSourceNode(this.context, { mediaElement: element }).connect(splitter);
    playback.gains.forEach((gain, channel) => splitter.connect(gain, channel));
    playback.element = element;
    element.play().catch(() => this.playback === playback && this.failSpeed());
    playback.halt = (end) => {
      const halt = () => {
        element.pause();
        URL.revokeObjectURL(element.src);
      };
      setTimeout(halt, (end - this.context.currentTime) * 1000);
    };
  }

  /** Go on at the speed 1, where a page forbids the media element. */
  failSpeed() {
    const { from, loop } = this.playback;
    this.speed = 1;
    this.start(from, loop);
    this.onspeedfailed?.();
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
    const { output, halt } = this.playback;
    const now = this.context.currentTime;
    const end = now + START_DELAY_S + FADE_S;
    output.gain.cancelScheduledValues(now);
    output.gain.setValueAtTime(output.gain.value, now);
    output.gain.linearRampToValueAtTime(0, end);
    halt(end);
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

  /** @param {number} volume a factor, 0 to 1 */
  setVolume(volume) {
    this.volume = volume;
    this.master?.gain.setTargetAtTime(volume, this.context.currentTime, FADE_S);
  }

  /** @param {number} speed a factor of the time; the pitch stays */
  setSpeed(speed) {
    const playback = this.playback;
    if (playback) this.stop();
    this.speed = speed;
    if (playback) this.start(this.pausedAt, playback.loop);
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
    const { when, from, loop, element } = this.playback;
    if (element) return Math.min((loop?.[0] ?? 0) + element.currentTime, loop?.[1] ?? this.length);
    const elapsed = Math.max(0, this.context.currentTime - when - (this.context.outputLatency || 0));
    if (!loop) return Math.min(from + elapsed, this.length);
    return loop[0] + ((from - loop[0] + elapsed) % (loop[1] - loop[0]));
  }

  close() {
    this.stop();
    this.ready?.then(() => this.context.close());
  }
}
