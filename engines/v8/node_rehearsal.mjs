// engines/selftest.py has Node run this in the jail before the jail is trusted; the socket is descriptor 3.
import child_process from "node:child_process";
import dgram from "node:dgram";
import fs from "node:fs";
import net from "node:net";
import process from "node:process";
import { attemptsWith, rehearse } from "./rehearsal.mjs";

const attempts = attemptsWith({ fs, net, dgram, child_process, process, engine: process.argv[2] });
process.on("uncaughtException", () => {}); // of a socket whose attempt was answered already
const told = await rehearse(attempts);
fs.writeSync(3, told);
process.exit(0);
