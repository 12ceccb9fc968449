"use strict";
const MOST = 20;
const text = document.getElementById("filter");
const kind = document.getElementById("kind");
const shown = document.getElementById("shown");
const found = document.getElementById("found");
const table = document.getElementById("failures");
const rows = Array.from(document.querySelectorAll("#failures tbody tr"));
const haystack = rows.map((row) => row.textContent.toLowerCase());
const others = JSON.parse(document.getElementById("others").textContent);
const names = others.users.map((user) => user[0].toLowerCase());

function became([, what, seconds]) {
  if (what === 1) return "not asked for yet";
  if (what === 2) return "was in flight, without an outcome";
  const at = new Date((others.created + seconds) * 1000).toISOString();
  return `${others.done} at ${at.slice(0, 19).replace("T", " ")} UTC`;
}

function item(user) {
  const line = document.createElement("li");
  const id = document.createElement("code");
  id.textContent = user[0];
  line.append(id, `: ${became(user)}`);
  return line;
}

function findOthers(wanted) {
  if (!wanted) return [];
  const places = [];
  names.forEach((name, place) => {
    if (name.includes(wanted)) places.push(place);
  });
  return places.sort((a, b) => (names[b] === wanted) - (names[a] === wanted));
}

function apply() {
  const wanted = text.value.trim().toLowerCase();
  let count = 0;
  rows.forEach((row, place) => {
    const fits =
      haystack[place].includes(wanted) &&
      (!kind || !kind.value || row.dataset.kind === kind.value);
    row.hidden = !fits;
    count += fits;
  });
  if (table) table.hidden = count === 0;
  const places = findOthers(wanted);
  found.replaceChildren(...places.slice(0, MOST).map((place) => item(others.users[place])));
  const said = rows.length
    ? [`${count.toLocaleString("en")} of ${rows.length.toLocaleString("en")} shown`]
    : [];
  if (wanted) {
    const more = places.length > MOST ? `, the first ${MOST} shown` : "";
    said.push(`${places.length.toLocaleString("en")} other users found${more}`);
  }
  shown.textContent = said.join("; ");
}

text.addEventListener("input", apply);
if (kind) kind.addEventListener("change", apply);
document.getElementById("search").hidden = false; // without this script, it would find nobody
apply();
