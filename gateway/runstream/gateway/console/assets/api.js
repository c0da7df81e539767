// Asks the public API. Who asks is known by a cookie that no script can read; a key is sent once, to be exchanged for it.

export class Refused extends Error {
  // With a 409 it may be named which run is in the way, and what was said by it.
  constructor(status, detail, { run_id: runId, otid } = {}) {
    super(detail);
    Object.assign(this, { status, runId, otid });
  }
}

const PATIENCE = 15000;

// Whether to ask again makes sense: nobody answers, or what stands before the gateway does, or the gateway has no NATS.
export const willPass = (status) => [0, 502, 503, 504].includes(status);

const refusalOf = async (response) => {
  const body = (await response.json().catch(() => null)) ?? {};
  return new Refused(response.status, typeof body.detail === "string" ? body.detail : `The gateway answers ${response.status}.`, body);
};

const send = async (path, { method = "GET", body, key, signal, isTried = false } = {}) => {
  const headers = {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (key !== undefined) headers.Authorization = `Bearer ${key}`;
  const limit = AbortSignal.timeout(PATIENCE);
  let response;
  try {
    response = await fetch(path, {
      method,
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      credentials: "same-origin",
      signal: signal ? AbortSignal.any([signal, limit]) : limit,
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Refused(0, "The gateway cannot be reached.");
  }
  if (response.ok) return response;
  if (response.status === 401 && key === undefined && !isTried) dispatchEvent(new Event("runstream:stranger"));
  throw await refusalOf(response);
};

export const ask = async (path, options) => (await send(path, options)).json();

// Begins a stream, returns the id of its run, and leaves: the run goes on without its reader.
export const begin = async (path, body) => {
  const leaving = new AbortController();
  const response = await send(path, { method: "POST", body, signal: leaving.signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let seen = "";
  for (;;) {
    const { value, done } = await reader.read();
    seen += value ?? "";
    const found = /"run_id":"(run-[0-9a-f-]{36})"/.exec(seen);
    if (found || done) {
      leaving.abort();
      if (found) return found[1];
      throw new Refused(0, "The gateway named no run.");
    }
  }
};

export const paths = {
  session: "/v1/runstream/session",
  health: "/v1/runstream/health",
  runs: (query) => `/v1/runs/?${new URLSearchParams(query)}`,
  run: (id) => `/v1/runs/${encodeURIComponent(id)}`,
  messages: (id) => `/v1/runs/${encodeURIComponent(id)}/messages?limit=1000`,
  stream: (id, after) => `/v1/runs/${encodeURIComponent(id)}/stream${after ? `?starting_after=${after}` : ""}`,
  withOtid: (otid) => `/v1/runstream/run?${new URLSearchParams({ otid })}`,
  figures: (ids) => `/v1/runstream/figures?${new URLSearchParams(ids.map((id) => ["run_ids", id]))}`,
  followers: (id) => `/v1/runstream/runs/${encodeURIComponent(id)}/followers`,
  outline: (id, after) => `/v1/runstream/runs/${encodeURIComponent(id)}/outline?starting_after=${after}`,
  cancel: (agent) => `/v1/agents/${encodeURIComponent(agent)}/messages/cancel`,
  say: (agent) => `/v1/agents/${encodeURIComponent(agent)}/messages`,
  sayIn: (conversation) => `/v1/conversations/${encodeURIComponent(conversation)}/messages`,
};

export const isLive = (run) => run?.status === "created" || run?.status === "running";

// Does something again and again, not while it is still being done, and not while nobody looks.
export const every = (milliseconds, work) => {
  let timer;
  let stopped = false;
  const turn = async () => {
    if (!document.hidden) await work();
    if (!stopped) timer = setTimeout(turn, typeof milliseconds === "function" ? milliseconds() : milliseconds);
  };
  turn();
  return () => {
    stopped = true;
    clearTimeout(timer);
  };
};
