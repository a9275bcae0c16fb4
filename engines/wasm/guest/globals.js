// Eager, last: the global names. Every unit is made now, since it becomes part of the image. There is no host here to
// ask, hence neither `atlas` nor `fetch`.
const names = {
  console: "console", TextEncoder: "encoding", TextDecoder: "encoding", URL: "url", URLSearchParams: "search_params",
  Headers: "headers", Response: "response", Request: "request", Event: "events", EventTarget: "events",
  CustomEvent: "events", AbortController: "abort", AbortSignal: "abort", crypto: "crypto", structuredClone: "clone",
};
for (const unit in sources) { need(unit); delete sources[unit]; }
for (const name in names) hidden(name, loaded[names[name]][name]);
defineProperty(global, "self", { value: global, writable: true, configurable: true });
hidden("performance", {
  now() { return now(); },
  get timeOrigin() { return Date.now() - now(); },
  toJSON() { return { timeOrigin: this.timeOrigin }; },
});
