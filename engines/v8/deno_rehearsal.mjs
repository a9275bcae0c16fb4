// engines/selftest.py has Deno run this in the jail before the jail is trusted; the socket is its standard output.
import child_process from "node:child_process";
import dgram from "node:dgram";
import fs from "node:fs";
import net from "node:net";
import process from "node:process";
import { attemptsWith, rehearse } from "./rehearsal.mjs";

const attempts = {
  ...attemptsWith({ fs, net, dgram, child_process, process, engine: Deno.args[0] }),
  deno_read: () => Deno.readFile("/etc/passwd"),
  deno_write: () => Deno.writeTextFile("/tmp/atlas-escaped", "x"),
  deno_connect: () => Deno.connect({ port: 9, hostname: "127.0.0.1" }),
  deno_listen: () => Deno.listen({ port: 0, hostname: "127.0.0.1" }),
  deno_run: () => new Deno.Command("/bin/true").output(),
  deno_kill: () => Deno.kill(Deno.ppid, "SIGURG"),
};
globalThis.addEventListener("error", (event) => event.preventDefault());
globalThis.addEventListener("unhandledrejection", (event) => event.preventDefault());
const told = await rehearse(attempts);
await Deno.stdout.write(new TextEncoder().encode(told));
Deno.exit(0);
