// The JSON API: one GET or POST, with errors that say what to do.

/** An answer that is no success: `status` (0: no answer at all), `code`, and a message with a hint where one was given. */
export class ApiError extends Error {
  constructor(status, code, message, hint) {
    super(hint ? `${message} ${hint}` : message);
    this.status = status;
    this.code = code;
  }
}

async function answer(request) {
  let response;
  try {
    response = await request;
  } catch (cause) {
    if (cause.name === "AbortError") throw cause;
    throw new ApiError(0, "no_answer", "The server does not answer.");
  }
  let body = null;
  try { body = await response.json(); } catch { /* told by its status */ }
  if (response.ok && body !== null) return body;
  if (response.status === 401) dispatchEvent(new Event("onetape:token"));
  const error = body?.error ?? {};
  throw new ApiError(response.status, error.code ?? "http", error.message ?? `The server answered ${response.status}.`, error.hint);
}

/** GET a path of the API with a query; absent values are left out. */
export function get(path, query = {}, signal = AbortSignal.timeout(20_000)) {
  const asked = new URLSearchParams(Object.entries(query).filter(([, value]) => value !== undefined && value !== null));
  return answer(fetch(`/api/v1/${path}${asked.size ? `?${asked}` : ""}`, { signal, headers: { accept: "application/json" } }));
}

export function post(path, body) {
  return answer(fetch(`/api/v1/${path}`, {
    method: "POST", body: JSON.stringify(body), headers: { "content-type": "application/json" }, signal: AbortSignal.timeout(20_000),
  }));
}

/** Ask again and again while a page is shown: `ask` at once and every `ms`; a hidden tab asks nobody. Returns stop(). */
export function every(ms, ask) {
  let timer = 0;
  let stopped = false;
  const turn = async () => {
    if (!document.hidden) {
      try { await ask(); } catch (error) { if (!(error instanceof ApiError)) console.error(error); }
    }
    if (!stopped) timer = setTimeout(turn, ms);
  };
  turn();
  return () => { stopped = true; clearTimeout(timer); };
}
