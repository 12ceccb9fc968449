"use strict";
const text = document.getElementById("filter");
const kind = document.getElementById("kind");
const shown = document.getElementById("shown");
const rows = Array.from(document.querySelectorAll("#failures tbody tr"));
const haystack = rows.map((row) => row.textContent.toLowerCase());

function apply() {
  const wanted = text.value.trim().toLowerCase();
  let count = 0;
  rows.forEach((row, place) => {
    const fits =
      haystack[place].includes(wanted) && (!kind.value || row.dataset.kind === kind.value);
    row.hidden = !fits;
    count += fits;
  });
  shown.textContent = `${count.toLocaleString("en")} of ${rows.length.toLocaleString("en")} shown`;
}

text.addEventListener("input", apply);
kind.addEventListener("change", apply);
apply();
