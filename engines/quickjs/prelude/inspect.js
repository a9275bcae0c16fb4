(function (core) { return { __proto__: null, inspect: (v) => core.toText(v) }; })
