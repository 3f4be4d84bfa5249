//! One line a request, for whoever watches the server: what it took, never what was said.

use moe_run_runtime::engine::Usage;
use serde_json::json;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::listener::Finished;
use crate::server::Server;

/// A request that is being answered. The line is written when it is dropped: whoever went away is in it, too.
pub struct Record {
    server: Arc<Server>,
    id: String,
    path: &'static str,
    started: Instant,
    status: u16,
    /// Why it ended; `None` while it runs.
    reason: Option<&'static str>,
    prompt_tokens: usize,
    usage: Usage,
}

impl Record {
    /// A request that begins now.
    pub fn begin(server: &Arc<Server>, id: String, path: &'static str) -> Record {
        Record {
            server: Arc::clone(server),
            id,
            path,
            started: Instant::now(),
            status: 200,
            reason: None,
            prompt_tokens: 0,
            usage: Usage::default(),
        }
    }

    /// It is refused or failed.
    pub fn failed(&mut self, status: u16, code: Option<&'static str>) {
        self.status = status;
        self.reason = Some(code.unwrap_or("error"));
    }

    /// A choice has ended.
    pub fn ended(&mut self, finished: &Finished) {
        let usage = finished.ended.usage;
        self.reason = Some(finished.word());
        self.prompt_tokens = self.prompt_tokens.max(usage.prompt_tokens);
        self.usage.cached_tokens = self.usage.cached_tokens.max(usage.cached_tokens);
        self.usage.output_tokens += usage.output_tokens;
        self.usage.queued = self.usage.queued.max(usage.queued);
        self.usage.first_token = self.usage.first_token.or(usage.first_token);
        self.usage.preemptions += usage.preemptions;
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let Record { server, id, path, started, status, reason, prompt_tokens, usage } = self;
        let reason = reason.unwrap_or("client_gone");
        let seconds = |time: Duration| (time.as_secs_f64() * 1e4).round() / 1e4;
        let (queued, total) = (seconds(usage.queued), seconds(started.elapsed()));
        let first_token = usage.first_token.map(seconds);
        let Usage { cached_tokens, output_tokens, preemptions, .. } = usage;
        let line = if server.config.log_json {
            json!({
                "id": id, "path": path, "status": status, "prompt_tokens": prompt_tokens, "cached_tokens": cached_tokens,
                "output_tokens": output_tokens, "queued_seconds": queued, "first_token_seconds": first_token,
                "total_seconds": total, "preemptions": preemptions, "reason": reason,
            })
            .to_string()
        } else {
            let first = first_token.map_or(String::new(), |t| format!(", first token {t:.2} s"));
            format!(
                "{path} {status} {id}: {prompt_tokens} in ({cached_tokens} cached), {output_tokens} out, queued {queued:.2} \
                 s{first}, {total:.2} s, {reason}"
            )
        };
        (server.config.log)(&line);
    }
}
