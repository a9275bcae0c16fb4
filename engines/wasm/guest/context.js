// Eager. `ctx`, parsed when it is first touched: what it holds and how long it is costs nothing before. It is made with
// the image, and once it is filled it is a plain frozen object behind a proxy without traps.
const lazyContext = (() => {
  const target = {};
  const traps = { __proto__: null };
  const names = ownKeys(Reflect);

  function fill() {
    for (let i = 0; i < names.length; i++) delete traps[names[i]];
    const parsed = deepFreeze(native.context());
    const keys = ownKeys(parsed);
    for (let i = 0; i < keys.length; i++) {
      defineProperty(target, keys[i], { __proto__: null, value: parsed[keys[i]], enumerable: true });
    }
    freeze(target);
  }

  for (let i = 0; i < names.length; i++) {
    const ordinary = Reflect[names[i]];
    if (typeof ordinary === "function") traps[names[i]] = (...args) => { fill(); return apply(ordinary, undefined, args); };
  }
  // These throw as they do in strict code without a proxy.
  traps.set = (object, key, value) => { fill(); object[key] = value; return true; };
  traps.deleteProperty = (object, key) => { fill(); return delete object[key]; };
  return new Proxy(target, traps);
})();
