// AbortController and AbortSignal.
(function (core) {
  const { Event, EventTarget } = core.need("events");
  const token = {};

  class AbortSignal extends EventTarget {
    #aborted = false;
    #reason;
    #handler = null;

    constructor(given) {
      if (given !== token) throw new TypeError("Illegal constructor");
      super();
    }

    get aborted() { return this.#aborted; }
    get reason() { return this.#reason; }
    get onabort() { return this.#handler; }
    set onabort(handler) {
      if (this.#handler !== null) this.removeEventListener("abort", this.#handler);
      this.#handler = typeof handler === "function" ? handler : null;
      if (this.#handler !== null) this.addEventListener("abort", this.#handler);
    }
    throwIfAborted() { if (this.#aborted) throw this.#reason; }

    static abort(reason) { const signal = new AbortSignal(token); AbortSignal.#fire(signal, reason); return signal; }

    static timeout(ms) {
      if (!(ms >= 0)) throw new TypeError("AbortSignal.timeout needs a number of milliseconds");
      const signal = new AbortSignal(token);
      core.startTimer(() => AbortSignal.#fire(signal, new DOMException("The operation timed out", "TimeoutError")), ms, [], false);
      return signal;
    }

    static any(signals) {
      const signal = new AbortSignal(token);
      for (const source of signals) {
        if (source.aborted) { AbortSignal.#fire(signal, source.reason); break; }
        source.addEventListener("abort", () => AbortSignal.#fire(signal, source.reason), { once: true });
      }
      return signal;
    }

    static fire(signal, reason) { AbortSignal.#fire(signal, reason); }
    static #fire(signal, reason) {
      if (signal.#aborted) return;
      signal.#aborted = true;
      signal.#reason = reason === undefined ? new DOMException("The operation was aborted", "AbortError") : reason;
      signal.dispatchEvent(new Event("abort"));
    }
  }
  const fire = AbortSignal.fire;
  delete AbortSignal.fire;

  class AbortController {
    #signal = new AbortSignal(token);
    get signal() { return this.#signal; }
    abort(reason) { fire(this.#signal, reason); }
  }

  return { __proto__: null, AbortController, AbortSignal };
})
