// @durable-streams/server as its README starts it: in memory, on a port that is free. Says `ready <url>`.

import { DurableStreamTestServer } from "@durable-streams/server";

const server = new DurableStreamTestServer({ port: 0, host: "127.0.0.1" });
await server.start();
console.log(`ready ${server.baseUrl ?? server.url}`);
