// Sends METHOD URL BODY, as often as they are given, with Node's fetch.
// Prints a line of status and body for each answer.

const given = process.argv.slice(2);
for (let n = 0; n < given.length; n += 3) {
  const [method, url, body] = given.slice(n, n + 3);
  const answer = await fetch(url, { method, body, headers: { "content-type": "application/json" } });
  console.log(answer.status, await answer.text());
}
