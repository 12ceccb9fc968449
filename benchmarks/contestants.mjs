// The Node clients that `speed` measures: node contestants.mjs NAME URL USERS
// undici is looked for in the folder that NODE_MODULES names. What is printed is what
// contestants.py prints.
import { existsSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [name, url, count] = process.argv.slice(2);
const KEY = "a-key-of-the-length-that-keys-have-0123456789";
const CONCURRENCY = 100;
const WARM_UP = 2000;

function client() {
  const headers = { "X-API-KEY": KEY };
  if (name === "node fetch") {
    return async (path) => {
      const response = await fetch(url + path, { method: "POST", headers });
      if (response.status !== 200) throw new Error(`status ${response.status}`);
      return response.json();
    };
  }
  const { Pool } = createRequire(`${process.env.NODE_MODULES}/`)("undici");
  const pool = new Pool(url, { connections: CONCURRENCY, pipelining: 1 });
  return async (path) => {
    const { statusCode, body } = await pool.request({ method: "POST", path, headers });
    if (statusCode !== 200) throw new Error(`status ${statusCode}`);
    return body.json();
  };
}

const call = client();

async function run(users) {
  let next = 0;
  let done = 0;
  const work = async () => {
    while (next < users) {
      const id = `UOtBaOybB6dTpIJN${String(next++).padStart(8, "0")}`;
      const user = await call(`/api/users/${id}/enable`);
      if (user.user_id !== id) throw new Error("another user");
      done++;
    }
  };
  await Promise.all(Array.from({ length: CONCURRENCY }, work));
  if (done !== users) throw new Error(`${done} of ${users} users`);
}

// Linux counts in maxRSS what the parent had at the start.
function megabytes() {
  const status = "/proc/self/status";
  if (!existsSync(status)) return process.resourceUsage().maxRSS / 1024;
  return Number(/VmHWM:\s+(\d+)/.exec(readFileSync(status, "ascii"))[1]) / 1024;
}

await run(WARM_UP);
const before = process.cpuUsage();
const began = performance.now();
await run(Number(count));
const { user, system } = process.cpuUsage(before);
const seconds = (performance.now() - began) / 1e3;
console.log(JSON.stringify({ cpu: (user + system) / 1e6, seconds, megabytes: megabytes() }));
process.exit(0); // the connections would keep it alive
