// The Node clients that `speed` measures: node benchmarks/contestants.mjs NAME URL USERS
// undici is looked for in the folder that NODE_MODULES names.
import { createRequire } from "node:module";

const [name, url, count] = process.argv.slice(2);
const KEY = "a-key-of-the-length-that-keys-have-0123456789";
const CONCURRENCY = 100;
const WARM_UP = 2000;

async function client() {
  if (name === "node fetch") {
    return async (address) => {
      const response = await fetch(address, { method: "POST", headers: { "X-API-KEY": KEY } });
      if (response.status !== 200) throw new Error(`status ${response.status}`);
      return response.json();
    };
  }
  const undici = createRequire(`${process.env.NODE_MODULES}/`)("undici");
  const pool = new undici.Pool(url, { connections: CONCURRENCY, pipelining: 1 });
  return async (address) => {
    const { statusCode, body } = await pool.request({
      method: "POST",
      path: address.slice(url.length),
      headers: { "X-API-KEY": KEY },
    });
    if (statusCode !== 200) throw new Error(`status ${statusCode}`);
    return JSON.parse(await body.text());
  };
}

const call = await client();

async function run(users) {
  let next = 0;
  const work = async () => {
    while (next < users) {
      const id = `UOtBaOybB6dTpIJN${String(next++).padStart(6, "0")}`;
      const user = await call(`${url}/api/users/${id}/enable`);
      if (user.user_id !== id) throw new Error("another user");
    }
  };
  await Promise.all(Array.from({ length: CONCURRENCY }, work));
}

await run(WARM_UP);
const before = process.cpuUsage();
const began = performance.now();
await run(Number(count));
const { user, system } = process.cpuUsage(before);
console.log(JSON.stringify({
  cpu: (user + system) / 1e6,
  seconds: (performance.now() - began) / 1e3,
  megabytes: process.resourceUsage().maxRSS / 1024,
  versions: name === "undici"
    ? { undici: createRequire(`${process.env.NODE_MODULES}/`)("undici/package.json").version }
    : { node: process.versions.node },
}));
process.exit(0);
