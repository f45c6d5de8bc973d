"use strict";
// Sorts a table by the header that is pressed; opens what is closed before the page is printed, and closes it again.
(() => {
  const compare = (numeric, sign) => (one, other) => {
    const [a, b] = [one.key, other.key];
    if ((a === "") !== (b === "")) return a === "" ? 1 : -1; // what has no value stays last, whatever the order
    const order = numeric ? (Number(a) > Number(b)) - (Number(a) < Number(b)) : a.localeCompare(b, "en", { numeric: true });
    return sign * order || one.place - other.place;
  };
  const value = (text) => (text === "inf" ? "Infinity" : text === "-inf" ? "-Infinity" : text);
  for (const table of document.querySelectorAll("table.sortable")) {
    const headers = [...table.tHead.rows[0].cells];
    const body = table.tBodies[0];
    const original = [...body.rows];
    headers.forEach((header, column) => {
      header.querySelector("button").addEventListener("click", () => {
        const next = { none: "ascending", ascending: "descending", descending: "none" }[header.getAttribute("aria-sort")];
        headers.forEach((each) => each.setAttribute("aria-sort", each === header ? next : "none"));
        const numeric = header.classList.contains("number");
        const rows = original.map((row, place) => ({ row, place, key: value(row.cells[column].dataset.sort) }));
        if (next !== "none") rows.sort(compare(numeric, next === "ascending" ? 1 : -1));
        body.append(...rows.map((entry) => entry.row));
      });
    });
  }
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const details of opened) details.open = true;
  });
  addEventListener("afterprint", () => {
    for (const details of opened) details.open = false;
  });
})();
