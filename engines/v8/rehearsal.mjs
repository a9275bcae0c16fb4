// What a hostile program would try first, with the node: modules of Node or of Deno: each attempt must be refused.
// Answers { name: "held: why" | "escaped" }. Run without the engine's own permission checks: the jail alone shall hold.

const PATIENCE_MS = 2000;

function settled(emitter, events) {
  return new Promise((resolve, reject) => {
    emitter.on("error", reject);
    for (const event of events) emitter.on(event, resolve);
  });
}

export function attemptsWith({ fs, net, dgram, child_process, process, engine }) {
  return {
    open_file: () => fs.readFileSync("/proc/self/environ"),
    open_password_file: () => fs.readFileSync("/etc/passwd"),
    write_file: () => fs.writeFileSync("/tmp/atlas-escaped", "x"),
    overwrite_engine: () => fs.closeSync(fs.openSync(engine, "r+")),
    list_root: () => fs.readdirSync("/proc"),
    connect_tcp: () => settled(net.connect(9, "127.0.0.1"), ["connect"]),
    connect_unix: () => settled(net.connect("/run/atlas.sock"), ["connect"]),
    listen_tcp: () => settled(net.createServer().listen(0, "127.0.0.1"), ["listening"]),
    send_udp: () => { const socket = dgram.createSocket("udp4"); socket.send("x", 9, "127.0.0.1"); return settled(socket, ["listening"]); },
    signal_parent: () => process.kill(process.ppid, 0),
    execute: () => settled(child_process.spawn("/bin/true"), ["spawn", "exit"]),
    execute_itself: () => settled(child_process.spawn(engine, ["--version"]), ["spawn", "exit"]),
  };
}

// Errors that say no; any other, like a refused connection, says that the attempt reached the outside.
const REFUSALS = new Set(["EPERM", "EACCES", "ENOENT", "ENOSYS", "EROFS", "PermissionDenied", "NotCapable", "NotFound"]);

export async function rehearse(attempts) {
  const outcomes = {};
  for (const [name, attempt] of Object.entries(attempts)) {
    let timer;
    const late = new Promise((resolve, reject) => { timer = setTimeout(reject, PATIENCE_MS, { code: "no answer" }); });
    try {
      await Promise.race([attempt(), late]);
      outcomes[name] = "escaped";
    } catch (error) {
      const code = error.code ?? error.name;
      outcomes[name] = REFUSALS.has(code) ? `held: ${code}` : `no proof: ${code} ${error.message}`;
    } finally {
      clearTimeout(timer);
    }
  }
  return JSON.stringify(outcomes);
}
