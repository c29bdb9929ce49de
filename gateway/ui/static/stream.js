// Server-sent events over fetch, which can send the key as a header; EventSource cannot.

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export function headers(key) {
  return key ? { authorization: `Bearer ${key}` } : {};
}

// The JSON of an answer. Throws Refused.
export async function getJson(path, key) {
  return (await open(path, key)).json();
}

// Yields [event, data] until the stream ends. Throws Refused, or what fetch throws.
export async function* events(path, key, signal) {
  const reader = (await open(path, key, signal)).body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    buffer += value;
    let end;
    while ((end = buffer.indexOf("\n\n")) >= 0) {
      const lines = buffer.slice(0, end).split("\n");
      buffer = buffer.slice(end + 2);
      const field = (name) => lines.find((line) => line.startsWith(`${name}: `))?.slice(name.length + 2) ?? "";
      yield [field("event"), JSON.parse(field("data"))];
    }
  }
}

async function open(path, key, signal) {
  const answer = await fetch(path, { headers: headers(key), cache: "no-store", credentials: "omit", signal });
  if (answer.ok) return answer;
  let message = `status ${answer.status}`;
  try {
    message = (await answer.json()).error.message;
  } catch {
    // Not our words: a proxy's, perhaps.
  }
  throw new Refused(answer.status, message);
}
