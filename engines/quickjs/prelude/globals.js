// Eager. The global names that lazy units stand behind, and the entry for the child.
const units = {
  console: ["console"], inspect: [], encoding: ["TextEncoder", "TextDecoder"], url: ["URL"],
  search_params: ["URLSearchParams"], headers: ["Headers"], response: ["Response"], request: ["Request"],
  events: ["Event", "EventTarget", "CustomEvent"], abort: ["AbortController", "AbortSignal"],
  crypto: ["crypto"], clone: ["structuredClone"], fetch: ["fetch"], atlas: [],
};
for (const unit in units) for (const name of units[unit]) lazyGlobal(name, unit);
defineProperty(global, "atlas", { get() { return need("atlas").atlas; }, enumerable: true, configurable: false });
defineProperty(global, "self", { value: global, writable: true, configurable: true });
hidden("performance", { now() { return now(); }, timeOrigin: Date.now() - now(), toJSON() { return { timeOrigin: this.timeOrigin }; } });
