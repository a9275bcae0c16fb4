// Attacks on the jail by a Node or Deno process that runs with all the rights its engine can give it.
// It is told "all", or the name of one that ends it, and answers JSON with {attack: "escaped" | "held: why"}.
import child_process from "node:child_process";
import dgram from "node:dgram";
import dns from "node:dns";
import fs from "node:fs";
import net from "node:net";
import os from "node:os";
import process from "node:process";

const deno = globalThis.Deno;
const engine = deno ? deno.args[0] : process.argv[2];
const [READ_FROM, WRITE_TO] = deno || process.argv[3] === "stdio" ? [0, 1] : [3, 3];

function happens(emitter, ...events) {
  return new Promise((resolve, reject) => {
    emitter.on("error", reject);
    for (const event of events) emitter.on(event, resolve);
  });
}

function must(condition, why) {
  if (!condition) throw Object.assign(new Error(why), { code: "EPERM" });
}

function ran(run) {
  must(run.status === 0, String(run.error?.code));
}

const attacks = {
  read_passwords: () => fs.readFileSync("/etc/passwd"),
  read_own_environment: () => fs.readFileSync("/proc/self/environ"),
  read_memory_of_parent: () => fs.readFileSync(`/proc/${process.ppid}/mem`),
  read_own_maps: () => fs.readFileSync("/proc/self/maps"),
  list_root: () => fs.readdirSync("/"),
  list_processes: () => fs.readdirSync("/proc"),
  climb: () => fs.readFileSync("../../../../../../etc/hostname"),
  write_a_file: () => fs.writeFileSync("/tmp/atlas-v8-escaped", "x"),
  append_to_engine: () => fs.openSync(engine, "a"),
  change_engine: () => fs.openSync(engine, "r+"),
  rename_engine: () => fs.renameSync(engine, engine), // what succeeds must do no harm
  make_directory: () => fs.mkdirSync("/tmp/atlas-v8-escaped.d"),
  temporary_directory: () => fs.mkdtempSync("/tmp/atlas-v8-"),
  change_mode: () => fs.chmodSync(engine, 0o755),
  change_owner: () => fs.chownSync(engine, 0, 0),
  change_times: () => fs.utimesSync(engine, 1, 1),
  plant_link: () => fs.symlinkSync("/etc/passwd", "/tmp/atlas-v8-link"),
  hard_link: () => fs.linkSync(engine, "/tmp/atlas-v8-link"),
  copy_a_file: () => fs.copyFileSync(engine, "/tmp/atlas-v8-copy"),
  write_to_null: () => fs.writeFileSync("/dev/null", "x"),
  change_directory: () => process.chdir("/tmp"),
  watch_files: () => happens(fs.watch("/"), "change"),
  connect_tcp: () => happens(net.connect(9, "127.0.0.1"), "connect"),
  connect_tcp6: () => happens(net.connect(9, "::1"), "connect"),
  connect_metadata: () => happens(net.connect(80, "169.254.169.254"), "connect"),
  connect_unix: () => happens(net.connect("/run/dbus/system_bus_socket"), "connect"),
  listen_tcp: () => happens(net.createServer().listen(0, "127.0.0.1"), "listening"),
  listen_unix: () => happens(net.createServer().listen("/tmp/atlas-v8.sock"), "listening"),
  listen_abstract: () => happens(net.createServer().listen("\0atlas-v8"), "listening"),
  udp: () => { const socket = dgram.createSocket("udp4"); socket.bind(0); return happens(socket, "listening"); },
  resolve_a_name: () => new Promise((resolve, reject) => dns.lookup("example.com", (error) => (error ? reject(error) : resolve()))),
  fetch_url: () => fetch("http://127.0.0.1:8080/"),
  spawn: () => happens(child_process.spawn("/bin/true"), "spawn", "exit"),
  spawn_shell: () => ran(child_process.spawnSync("/bin/sh", ["-c", "true"])),
  spawn_engine: () => ran(child_process.spawnSync(engine, ["--version"])),
  signal_parent: () => process.kill(process.ppid, 0),
  signal_first_process: () => process.kill(1, 0),
  signal_own_group: () => process.kill(0, 0),
  lower_priority: () => os.setPriority(5),
  network_interfaces: () => must(Object.keys(os.networkInterfaces()).length > 0, "none"),
};
const lethal = deno ? {} : {
  become_root: () => process.setuid(0),
  become_root_group: () => process.setgid(0),
  join_groups: () => process.setgroups([0]),
  become_another_program: () => process.execve("/bin/true", ["true"], {}),
};
const nodes = {
  load_native_code: () => process.dlopen({ exports: {} }, "/tmp/atlas-v8.node"),
  open_inspector: async () => { const { default: inspector } = await import("node:inspector"); inspector.open(0); must(inspector.url(), "none"); },
};
const denos = {
  deno_read: () => Deno.readTextFile("/etc/passwd"),
  deno_write: () => Deno.writeTextFile("/tmp/atlas-v8-escaped", "x"),
  deno_list: async () => { for await (const entry of Deno.readDir("/proc")) return entry; },
  deno_temporary_file: () => Deno.makeTempFile(),
  deno_connect: () => Deno.connect({ hostname: "127.0.0.1", port: 9 }),
  deno_connect_unix: () => Deno.connect({ transport: "unix", path: "/run/dbus/system_bus_socket" }),
  deno_listen: () => Deno.listen({ port: 0 }),
  deno_listen_udp: () => Deno.listenDatagram({ transport: "udp", port: 0 }),
  deno_serve: () => Deno.serve({ port: 0 }, () => new Response("")),
  deno_run: () => new Deno.Command("/bin/true").output(),
  deno_run_itself: () => new Deno.Command(engine, { args: ["--version"] }).output(),
  deno_kill: () => Deno.kill(Deno.ppid, "SIGURG"),
  deno_native_code: () => Deno.dlopen("/tmp/atlas-v8.so", {}),
  deno_symlink: () => Deno.symlink("/etc/passwd", "/tmp/atlas-v8-link"),
};
Object.assign(attacks, deno ? denos : nodes);

const REFUSALS = new Set([
  "EPERM", "EACCES", "ENOENT", "ENOSYS", "EROFS", "ENOTDIR", "EAI_AGAIN", "EAI_FAIL", "ENOTFOUND", "ERR_DLOPEN_FAILED",
]);
const REFUSAL_TEXT = /\(os error (1|2|13|30)\)|not permitted|ermission denied|cannot open shared object|No such file|Unknown system error 1 /;

const PATIENCE_MS = 3000;

async function outcome(attack) {
  let timer;
  const late = new Promise((resolve, reject) => { timer = setTimeout(reject, PATIENCE_MS, { code: "no answer" }); });
  try {
    await Promise.race([attack(), late]);
    return "escaped";
  } catch (error) {
    const text = `${error?.code} ${error?.message} ${error?.cause?.code ?? ""} ${error?.cause?.message ?? ""}`;
    return REFUSALS.has(error?.code) || REFUSALS.has(error?.cause?.code) || REFUSAL_TEXT.test(text)
      ? `held: ${text}`
      : `no proof: ${text}`;
  } finally {
    clearTimeout(timer);
  }
}

const order = Buffer.alloc(64);
const name = order.toString("utf8", 0, fs.readSync(READ_FROM, order));
const outcomes = {};
if (name === "all") for (const [each, attack] of Object.entries(attacks)) outcomes[each] = await outcome(attack);
else outcomes[name] = await outcome(lethal[name]);
fs.writeSync(WRITE_TO, JSON.stringify({ outcomes, lethal: Object.keys(lethal) }));
process.exit(0);
