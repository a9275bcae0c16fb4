// console.*: every line goes to the log of the running invocation.
(function (core) {
  const { writeLog, now } = core;
  const counts = new Map();
  const timers = new Map();
  let indent = "";

  function text(args) {
    let whole = "";
    for (let i = 0; i < args.length; i++) {
      const value = args[i];
      if (typeof value !== "string" || (i === 0 && args.length > 1 && value.includes("%"))) return core.need("inspect").format(args);
      whole += i === 0 ? value : " " + value;
    }
    return whole;
  }

  function write(level, args) {
    const line = text(args);
    writeLog(level, indent === "" ? line : indent + line.replaceAll("\n", "\n" + indent));
  }

  function cell(value) { return typeof value === "string" ? value : core.need("inspect").inspect(value); }

  function table(data) {
    if (typeof data !== "object" || data === null) return undefined;
    const rows = Object.entries(data).slice(0, 100);
    const columns = [...new Set(rows.flatMap(([, row]) => (typeof row === "object" && row !== null ? Object.keys(row) : [])))].slice(0, 20);
    const plain = rows.some(([, row]) => typeof row !== "object" || row === null);
    const head = ["(index)", ...columns, ...(plain ? ["Values"] : [])];
    const lines = rows.map(([index, row]) => {
      const isRow = typeof row === "object" && row !== null;
      const cells = columns.map((key) => (isRow && Object.hasOwn(row, key) ? cell(row[key]) : ""));
      return [index, ...cells, ...(plain ? [isRow ? "" : cell(row)] : [])];
    });
    const widths = head.map((name, i) => Math.max(name.length, ...lines.map((line) => line[i].length)));
    const show = (line) => line.map((part, i) => part.padEnd(widths[i])).join(" | ").trimEnd();
    return [show(head), widths.map((width) => "-".repeat(width)).join("-|-"), ...lines.map(show)].join("\n");
  }

  function elapsed(label, rest) {
    const from = timers.get(label);
    if (from === undefined) return write("warn", ["Timer '" + label + "' does not exist"]);
    write("log", [label + ": " + (now() - from).toFixed(3) + "ms", ...rest]);
  }

  const console = {
    log(...args) { write("log", args); },
    info(...args) { write("info", args); },
    warn(...args) { write("warn", args); },
    error(...args) { write("error", args); },
    debug(...args) { write("debug", args); },
    trace(...args) {
      const stack = core.need("inspect").framesOf(core.toText(new core.NativeError().stack));
      write("debug", [["Trace" + (args.length > 0 ? ": " + text(args) : ""), ...stack].join("\n")]);
    },
    assert(condition, ...args) {
      if (condition) return;
      if (typeof args[0] === "string") write("error", ["Assertion failed: " + args[0], ...args.slice(1)]);
      else write("error", ["Assertion failed", ...args]);
    },
    dir(value) { write("log", [core.need("inspect").inspect(value)]); },
    table(data) { const shown = table(data); write("log", [shown === undefined ? cell(data) : shown]); },
    group(...args) { if (args.length > 0) write("log", args); if (indent.length < 40) indent += "  "; },
    groupEnd() { indent = indent.slice(2); },
    count(label = "default") {
      const name = core.toText(label);
      counts.set(name, (counts.get(name) ?? 0) + 1);
      write("log", [name + ": " + counts.get(name)]);
    },
    countReset(label = "default") { counts.delete(core.toText(label)); },
    time(label = "default") { timers.set(core.toText(label), now()); },
    timeLog(label = "default", ...rest) { elapsed(core.toText(label), rest); },
    timeEnd(label = "default") { elapsed(core.toText(label), []); timers.delete(core.toText(label)); },
  };
  console.groupCollapsed = console.group;
  console.dirxml = console.dir;
  return { __proto__: null, console };
})
