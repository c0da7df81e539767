// resumable-stream behind Node's own HTTP server, as its README has it behind Next's: POST makes a stream of the text
// that is uploaded, GET follows it. One process has both sides. Says `ready <url>`.

import http from "node:http";
import { createResumableStreamContext } from "resumable-stream/redis";

const context = createResumableStreamContext({ waitUntil: () => {} });

function uploaded(request) {
  request.setEncoding("utf8");
  return new ReadableStream({
    start(controller) {
      request.on("data", (text) => controller.enqueue(text));
      request.on("end", () => controller.close());
    },
  });
}

async function make(id, request, response) {
  const stream = await context.createNewResumableStream(id, () => uploaded(request));
  // A follower that asks from now on finds the stream: the uploader may tell.
  response.writeHead(200, { "Content-Type": "text/plain" });
  response.flushHeaders();
  for await (const _ of stream);
  response.end();
}

async function follow(id, response) {
  const stream = await context.resumeExistingStream(id);
  if (!stream) {
    response.writeHead(422).end();
    return;
  }
  response.writeHead(200, { "Content-Type": "text/event-stream" });
  for await (const text of stream) {
    if (text) response.write(text);
    else response.flushHeaders();
  }
  response.end();
}

const server = http.createServer({ requestTimeout: 0 }, (request, response) => {
  const id = request.url.slice(1);
  const answering = request.method === "POST" ? make(id, request, response) : follow(id, response);
  answering.catch((error) => response.destroy(error));
});
server.listen(0, "127.0.0.1", 1024, () => console.log(`ready http://127.0.0.1:${server.address().port}`));
