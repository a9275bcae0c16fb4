// Event, CustomEvent and EventTarget, without a tree: an event has one target and no phases.
(function (core) {
  class Event {
    #type;
    #cancelable;
    #bubbles;
    #prevented = false;
    #stopped = false;
    #target = null;
    #at = core.now();

    constructor(type, options = {}) {
      if (arguments.length === 0) throw new TypeError("An Event needs a type");
      this.#type = core.toText(type);
      this.#bubbles = Boolean(options?.bubbles);
      this.#cancelable = Boolean(options?.cancelable);
    }

    get type() { return this.#type; }
    get target() { return this.#target; }
    get currentTarget() { return this.#target; }
    get bubbles() { return this.#bubbles; }
    get cancelable() { return this.#cancelable; }
    get defaultPrevented() { return this.#prevented; }
    get timeStamp() { return this.#at; }
    preventDefault() { if (this.#cancelable) this.#prevented = true; }
    stopPropagation() {}
    stopImmediatePropagation() { this.#stopped = true; }

    static begin(event, target) { event.#target = target; event.#stopped = false; }
    static stopped(event) { return event.#stopped; }
  }
  const { begin, stopped } = Event;
  delete Event.begin;
  delete Event.stopped;

  class CustomEvent extends Event {
    #detail;
    constructor(type, options = {}) { super(type, options); this.#detail = options?.detail ?? null; }
    get detail() { return this.#detail; }
  }

  class EventTarget {
    #listeners = new Map();

    addEventListener(type, callback, options) {
      if (callback === null || callback === undefined) return;
      const given = typeof options === "object" && options !== null ? options : {};
      if (given.signal?.aborted) return;
      const name = core.toText(type);
      const list = this.#listeners.get(name) ?? [];
      if (list.some((listener) => listener.callback === callback)) return;
      this.#listeners.set(name, [...list, { callback, once: Boolean(given.once) }]);
      given.signal?.addEventListener("abort", () => this.removeEventListener(name, callback), { once: true });
    }

    removeEventListener(type, callback) {
      const name = core.toText(type);
      const list = this.#listeners.get(name);
      if (list !== undefined) this.#listeners.set(name, list.filter((listener) => listener.callback !== callback));
    }

    dispatchEvent(event) {
      begin(event, this);
      for (const { callback, once } of this.#listeners.get(event.type) ?? []) {
        if (once) this.removeEventListener(event.type, callback);
        try {
          if (typeof callback === "function") callback.call(this, event);
          else callback.handleEvent(event);
        } catch (error) { core.uncaught(error); }
        if (stopped(event)) break;
      }
      return !event.defaultPrevented;
    }
  }

  return { __proto__: null, Event, CustomEvent, EventTarget };
})
