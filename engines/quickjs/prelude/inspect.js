// Values as people read them in a log: the shape of Node's util.inspect, bounded in depth, width and length. It runs no
// getter of the value; a Proxy's traps may run, and whatever they throw is shown as such.
(function (core) {
  const MAX_DEPTH = 2;
  const MAX_ITEMS = 100;
  const MAX_TEXT = 10000;
  const MAX_OUTPUT = 65536;
  const LINE_WIDTH = 72;
  const describe = Reflect.getOwnPropertyDescriptor;
  const prototypeOf = Object.getPrototypeOf;
  const IDENTIFIER = /^[A-Za-z_$][\w$]*$/;
  const OUR_FRAME = /<input>:1:|node:internal\/|[( ]ext:|(?:node|deno)_main\./;
  const ESCAPES = { __proto__: null, "\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b", "\f": "\\f", "\v": "\\v", "\\": "\\\\", "'": "\\'" };

  function quote(text) {
    const cut = text.length > MAX_TEXT ? text.slice(0, MAX_TEXT) : text;
    const body = cut.replace(/[\x00-\x1f\x7f\\']/g, (char) => ESCAPES[char] ?? "\\x" + char.charCodeAt(0).toString(16).padStart(2, "0"));
    return "'" + body + "'" + (text.length > MAX_TEXT ? "... " + (text.length - MAX_TEXT) + " more characters" : "");
  }

  function primitive(value) {
    if (typeof value === "string") return quote(value);
    if (typeof value === "bigint") return value.toString() + "n";
    if (Object.is(value, -0)) return "-0";
    return String(value);
  }

  // The name of the class an object belongs to, "" for a plain object's prototype-less cousin.
  function className(value) {
    for (let object = value, depth = 0; object !== null && depth < 8; object = prototypeOf(object), depth++) {
      const made = describe(object, "constructor");
      if (made !== undefined && typeof made.value === "function") {
        const name = describe(made.value, "name");
        if (name !== undefined && typeof name.value === "string" && name.value !== "") return name.value;
      }
    }
    return "";
  }

  function functionText(value) {
    const name = describe(value, "name")?.value;
    const source = Function.prototype.toString.call(value);
    const kind = /^class\b/.test(source) ? "class" : /^async\b/.test(source) ? "AsyncFunction" : "Function";
    const label = typeof name === "string" && name !== "" ? name : "(anonymous)";
    return kind === "class" ? "[class " + label + "]" : "[" + kind + (label === "(anonymous)" ? " " : ": ") + label + "]";
  }

  // The frames of a stack that are the program's own. Some engines tell the error above them.
  function framesOf(stack) {
    const below = stack.slice(Math.max(0, stack.search(/^ {4}at /m)));
    return below.split("\n").filter((line) => line.trim() !== "" && !OUR_FRAME.test(line));
  }

  function errorText(error) {
    const name = String(error.name ?? "Error");
    const message = String(error.message ?? "");
    const head = message === "" ? name : name + ": " + message;
    const stack = typeof error.stack === "string" ? error.stack : "";
    const frames = framesOf(stack).filter((line) => line.trim() !== head);
    return frames.length === 0 ? "[" + head + "]" : head + "\n" + frames.join("\n");
  }

  class Printer {
    #seen = new Set();
    #size = 0;

    show(value, depth) {
      if (typeof value === "function" && Reflect.ownKeys(value).every((key) => key === "length" || key === "name" || key === "prototype")) return this.#count(functionText(value));
      if ((typeof value !== "object" && typeof value !== "function") || value === null) return this.#count(primitive(value));
      if (this.#seen.has(value)) return "[Circular]";
      if (this.#size > MAX_OUTPUT) return "...";
      this.#seen.add(value);
      try { return this.#object(value, depth); } catch (error) {
        return "[" + typeof value + " that cannot be shown]";
      } finally { this.#seen.delete(value); }
    }

    #count(text) { this.#size += text.length; return text; }

    #object(value, depth) {
      const name = className(value);
      const deep = depth > MAX_DEPTH;
      if (Array.isArray(value)) {
        if (deep) return "[Array]";
        const prefix = name === "Array" ? "" : (name || "[Array: null prototype]") + "(" + value.length + ") ";
        return this.#list(prefix, "[", "]", [...this.#items(value, value.length, depth), ...this.#properties(value, depth, true)]);
      }
      if (core.isNativeError(value)) {
        const extra = this.#properties(value, depth, false, ["stack", "message", "name"]);
        const text = this.#count(errorText(value));
        return extra.length === 0 ? text : text + " " + this.#list("", "{", "}", extra);
      }
      if (value instanceof Date) return this.#count(isNaN(value) ? "Invalid Date" : Date.prototype.toISOString.call(value));
      if (value instanceof RegExp) return this.#count(RegExp.prototype.toString.call(value));
      if (typeof value === "function") return this.#list(functionText(value) + " ", "{", "}", this.#properties(value, depth, false, ["length", "name", "prototype"]));
      if (deep) return "[" + (name || "Object: null prototype") + "]";
      if (value instanceof Map) {
        return this.#list(name + "(" + value.size + ") ", "{", "}", this.#taken(Map.prototype.entries.call(value), value.size, ([key, item]) => this.show(key, depth + 1) + " => " + this.show(item, depth + 1)));
      }
      if (value instanceof Set) {
        return this.#list(name + "(" + value.size + ") ", "{", "}", this.#taken(Set.prototype.values.call(value), value.size, (item) => this.show(item, depth + 1)));
      }
      if (ArrayBuffer.isView(value) && !(value instanceof DataView)) return this.#list(name + "(" + value.length + ") ", "[", "]", this.#items(value, value.length, depth));
      if (value instanceof ArrayBuffer) return name + " { byteLength: " + value.byteLength + " }";
      for (const Wrapper of [Number, String, Boolean, Symbol, BigInt]) {
        if (value instanceof Wrapper) return "[" + Wrapper.name + ": " + primitive(Wrapper.prototype.valueOf.call(value)) + "]";
      }
      const prefix = name === "Object" ? "" : (name === "" ? "[Object: null prototype]" : name) + " ";
      return this.#list(prefix, "{", "}", this.#properties(value, depth, false));
    }

    *#more(total) { if (total > MAX_ITEMS) yield "... " + (total - MAX_ITEMS) + " more item" + (total - MAX_ITEMS === 1 ? "" : "s"); }

    #items(value, length, depth) {
      const out = [];
      const end = Math.min(length, MAX_ITEMS);
      let holes = 0;
      for (let i = 0; i <= end; i++) {
        const own = i < end ? describe(value, i) : undefined;
        if (i < end && own === undefined) { holes++; continue; }
        if (holes > 0) { out.push("<" + holes + " empty item" + (holes === 1 ? "" : "s") + ">"); holes = 0; }
        if (i < end) out.push(this.#described(own, depth));
      }
      out.push(...this.#more(length));
      return out;
    }

    #taken(iterator, total, show) {
      const out = [];
      for (const item of iterator) {
        if (out.length === MAX_ITEMS) break;
        out.push(show(item));
      }
      out.push(...this.#more(total));
      return out;
    }

    #properties(value, depth, isArray, skipped = []) {
      const out = [];
      let total = 0;
      for (const key of Reflect.ownKeys(value)) {
        if (skipped.includes(key) || (isArray && typeof key === "string" && /^(?:\d+|length)$/.test(key))) continue;
        const own = describe(value, key);
        if (own === undefined || !own.enumerable) continue;
        if (++total > MAX_ITEMS) continue;
        const label = typeof key === "symbol" ? "[" + String(key) + "]" : IDENTIFIER.test(key) ? key : quote(key);
        out.push(this.#count(label) + ": " + this.#described(own, depth));
      }
      out.push(...this.#more(total));
      return out;
    }

    #described(own, depth) {
      if (own.get !== undefined) return own.set !== undefined ? "[Getter/Setter]" : "[Getter]";
      if (own.set !== undefined) return "[Setter]";
      return this.show(own.value, depth + 1);
    }

    #list(prefix, open, close, parts) {
      if (parts.length === 0) return prefix + open + close;
      const width = parts.reduce((sum, part) => sum + part.length + 2, prefix.length + 4);
      if (width <= LINE_WIDTH && !parts.some((part) => part.includes("\n"))) return prefix + open + " " + parts.join(", ") + " " + close;
      return prefix + open + "\n" + parts.map((part) => "  " + part.replaceAll("\n", "\n  ")).join(",\n") + "\n" + close;
    }
  }

  function inspect(value) {
    try { return new Printer().show(value, 0); } catch { return "[value that cannot be shown]"; }
  }

  function number(value, parse) {
    return typeof value === "symbol" ? "NaN" : typeof value === "bigint" ? primitive(value) : primitive(parse(value));
  }

  // console's way with its arguments: %s %d %i %f %j %o %O %c %%, then the rest with spaces between.
  function format(args) {
    let next = 0;
    let text = "";
    if (typeof args[0] === "string") {
      next = 1;
      text = args.length === 1 ? args[0] : args[0].replace(/%[sdifjoOc%]/g, (mark) => {
        if (mark === "%%") return "%";
        if (next >= args.length) return mark;
        const value = args[next++];
        switch (mark) {
          case "%s": return typeof value === "string" ? value : typeof value === "object" || typeof value === "function" ? inspect(value) : primitive(value);
          case "%d": return number(value, Number);
          case "%i": return number(value, parseInt);
          case "%f": return number(value, parseFloat);
          case "%j": try { return core.stringify(value) ?? "undefined"; } catch { return "[Circular]"; }
          case "%c": return "";
          default: return inspect(value);
        }
      });
    }
    for (; next < args.length; next++) {
      const value = args[next];
      text += (next === 0 ? "" : " ") + (typeof value === "string" ? value : inspect(value));
    }
    return text;
  }

  return { __proto__: null, inspect, format, framesOf };
})
