//! Which request runs when, and with how many tokens of a step.
//!
//! A step has the next token of every request that generates, then parts of prompts, the oldest request first. Where blocks run
//! out, the youngest request gives its own back and waits at the head of the queue, to be computed anew, which gives it the same
//! bits. A request whose beginning another one is computing waits for it.

use super::choose::{Choose, Chooser};
use super::{EndReason, Ended, Flow, Listener, Looks, Meter, Request, Settings, Usage};
use crate::error::BackendError;
use crate::generate::{Constraint, GenerateError};
use crate::sequences::{Feed, SequenceId, Sequences, TappedRows, Taps, last_experts};
use crate::session::checkpoint_border;
use crate::step::BLOCK_TOKENS;
use moe_run_graph::ids::TokenId;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// The least part of a prompt in a step that others wait for.
const LEAST_PART: usize = 8;
/// The share of the longest step that parts of prompts are cut for, and how much longer one may be than the one before it.
const AIMED_SHARE: f64 = 0.85;
const MOST_GROWTH: f64 = 1.4;

/// A request, waiting or running.
struct Task {
    /// Ascends with the time of submission.
    number: u64,
    /// The prompt and what was generated.
    tokens: Vec<TokenId>,
    max_tokens: Option<usize>,
    chooser: Chooser,
    looks: Looks,
    /// Rows that were told, by tap.
    tapped: Vec<TappedRows>,
    end_tokens: Arc<[TokenId]>,
    listener: Box<dyn Listener>,
    usage: Usage,
    submitted: Instant,
    last_token: Option<Instant>,
}

impl Task {
    /// Keeps the rows that were asked for.
    fn keep(&mut self, tapped: &[TappedRows]) {
        for rows in tapped.iter().filter(|rows| self.looks.rows.contains(&(rows.stage, rows.layer))) {
            match self.tapped.iter_mut().find(|t| (t.stage, t.layer) == (rows.stage, rows.layer)) {
                Some(before) => before.extend(rows.clone()),
                None => self.tapped.push(rows.clone()),
            }
        }
    }
}

struct Running {
    task: Task,
    id: SequenceId,
    /// Tokens that the sequence holds.
    held: usize,
    /// Where its beginning parts from others', whose blocks are there, while no states were kept.
    parting: usize,
}

impl Running {
    fn left(&self) -> usize {
        self.task.tokens.len() - self.held
    }

    /// Whether it has all tokens but the one chosen last.
    fn generates(&self) -> bool {
        self.left() == 1 && self.task.usage.output_tokens > 0
    }
}

/// A part of a running request in a step.
#[derive(Debug, Clone, Copy)]
struct Part {
    /// Index into those that run.
    running: usize,
    tokens: usize,
}

/// Requests that share an executable, a step at a time.
pub struct Scheduler {
    sequences: Sequences,
    settings: Settings,
    waiting: VecDeque<Task>,
    /// By number.
    running: Vec<Running>,
    meter: Arc<Meter>,
    submitted: u64,
    logits: Vec<f32>,
    /// Tokens of prompts in a step that others wait for.
    part_tokens: f64,
    /// What a step took lately that read no prompt.
    generation_seconds: f64,
}

impl std::fmt::Debug for Scheduler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scheduler")
            .field("sequences", &self.sequences)
            .field("waiting", &self.waiting.len())
            .field("running", &self.running.len())
            .finish_non_exhaustive()
    }
}

impl Scheduler {
    /// A scheduler without requests.
    ///
    /// # Errors
    /// [`BackendError::Input`] where the pool has no room for one whole sequence, or a step none for a token of each.
    pub fn new(sequences: Sequences, settings: Settings) -> Result<Scheduler, BackendError> {
        let (pool, one) = (sequences.pool_tokens(), sequences.capacity_tokens());
        if pool < one.next_multiple_of(BLOCK_TOKENS) {
            return Err(BackendError::Input(format!(
                "a pool of {pool} tokens: wanted one whole context at least, {} tokens in blocks of {BLOCK_TOKENS}",
                one.next_multiple_of(BLOCK_TOKENS)
            )));
        }
        let (at_once, batch) = (sequences.max_sequences(), sequences.info().micro_batch);
        if at_once > batch {
            return Err(BackendError::Input(format!(
                "{at_once} requests at once: wanted as many as a step has tokens at most, which are {batch}"
            )));
        }
        let meter = Meter::default();
        meter.blocks_total.store(pool / BLOCK_TOKENS, Ordering::Relaxed);
        Ok(Scheduler {
            sequences,
            settings,
            waiting: VecDeque::new(),
            running: Vec::new(),
            meter: Arc::new(meter),
            submitted: 0,
            logits: Vec::new(),
            part_tokens: LEAST_PART as f64,
            generation_seconds: 0.0,
        })
    }

    /// What is counted.
    #[must_use]
    pub fn meter(&self) -> Arc<Meter> {
        Arc::clone(&self.meter)
    }

    /// Its sequences, all of them closed. Requests that are not complete hear nothing more.
    #[must_use]
    pub fn into_sequences(self) -> Sequences {
        let Scheduler { mut sequences, running, .. } = self;
        for running in &running {
            sequences.close(running.id);
        }
        sequences
    }

    /// Whether nobody runs or waits.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Tokens that fit in the blocks that nobody has.
    #[must_use]
    pub fn free_tokens(&self) -> usize {
        self.sequences.free_tokens()
    }

    /// Takes a request into the queue. One that cannot be run hears so at once.
    pub fn submit(&mut self, request: Request) {
        let Request { prompt, max_tokens, choose, constraint, looks, end_tokens, mut listener } = request;
        let usage = Usage { prompt_tokens: prompt.len(), ..Usage::default() };
        let chooser = match self.chooser(prompt.len(), choose, constraint, &looks) {
            Ok(chooser) => chooser,
            Err(why) => {
                listener.end(&Ended { reason: EndReason::Failed(why), usage, tapped: Vec::new() });
                return self.release_place();
            }
        };
        self.submitted += 1;
        self.waiting.push_back(Task {
            number: self.submitted,
            tokens: prompt,
            max_tokens,
            chooser,
            looks,
            tapped: Vec::new(),
            end_tokens,
            listener,
            usage,
            submitted: Instant::now(),
            last_token: None,
        });
        self.count();
    }

    /// What chooses a request's tokens; or why it cannot be run.
    fn chooser(
        &mut self,
        prompt_tokens: usize,
        choose: Choose,
        constraint: Option<Box<dyn Constraint>>,
        looks: &Looks,
    ) -> Result<Chooser, String> {
        let capacity_tokens = self.sequences.capacity_tokens();
        if prompt_tokens == 0 {
            return Err("the prompt has no tokens".to_owned());
        }
        if prompt_tokens > capacity_tokens {
            let full = BackendError::ContextFull { wanted_tokens: prompt_tokens, capacity_tokens };
            return Err(full.to_string());
        }
        let chooser = Chooser::new(choose, constraint).map_err(|error| error.to_string())?;
        if looks.taps().next().is_some() {
            // Of all together, so that no two of them have it made anew in turns.
            let others = self.waiting.iter().chain(self.running.iter().map(|r| &r.task));
            let taps = others.flat_map(|task| task.looks.taps()).chain(looks.taps()).copied().collect();
            self.sequences.prepare_taps(&taps).map_err(|error| error.to_string())?;
        }
        Ok(chooser)
    }

    /// One step of all who run, and what comes of it.
    pub fn step(&mut self) {
        self.drop_those_gone();
        self.admit();
        let parts = self.compose();
        self.count();
        if parts.is_empty() {
            return;
        }
        let mut wants_logits = vec![false; self.running.len()];
        for part in &parts {
            wants_logits[part.running] = part.tokens == self.running[part.running].left();
        }
        let taps: Taps =
            parts.iter().flat_map(|part| self.running[part.running].task.looks.taps()).copied().collect();
        let mut constraints = Vec::new();
        let mut lefts = Vec::with_capacity(self.running.len());
        for (running, wants_logits) in self.running.iter_mut().zip(&wants_logits) {
            let Running { task: Task { tokens, chooser, .. }, id, held, parting: _ } = running;
            constraints.extend(chooser.constraint().filter(|_| *wants_logits));
            lefts.push((*id, &tokens[*held..]));
        }
        let feed = |part: &Part| {
            let (sequence, left) = lefts[part.running];
            Feed { sequence, tokens: &left[..part.tokens], wants_logits: wants_logits[part.running] }
        };
        let feeds: Vec<Feed<'_>> = parts.iter().map(feed).collect();
        let started = Instant::now();
        let sequences = &mut self.sequences;
        let done = beside(constraints, || match taps.is_empty() {
            false => sequences.step_tapped(&feeds, &taps),
            true => sequences.step(&feeds, None).and_then(|()| {
                sequences.executable().wait()?;
                Ok(Vec::new())
            }),
        });
        let took = started.elapsed();
        self.meter.steps.fetch_add(1, Ordering::Relaxed);
        self.meter.step.add(took);
        match done {
            Ok(tapped) => self.take_results(&parts, tapped, took),
            Err(error) => self.fail(&parts, &error.to_string()),
        }
        self.count();
    }

    /// Requests that nobody listens to end without a word.
    fn drop_those_gone(&mut self) {
        let before = self.waiting.len() + self.running.len();
        self.waiting.retain(|task| !task.listener.is_gone());
        let sequences = &mut self.sequences;
        self.running.retain(|running| {
            let is_gone = running.task.listener.is_gone();
            if is_gone {
                sequences.close(running.id);
            }
            !is_gone
        });
        for _ in self.waiting.len() + self.running.len()..before {
            self.release_place();
        }
    }

    /// Blocks for so many tokens and the next one, where there may be one.
    fn blocks_for(&self, tokens: usize) -> usize {
        (tokens + 1).min(self.sequences.capacity_tokens()).div_ceil(BLOCK_TOKENS)
    }

    /// Blocks that those who run will need for what they have to hold, beyond those that they have.
    fn promised_blocks(&self) -> usize {
        let wanted = |r: &Running| self.blocks_for(r.task.tokens.len());
        self.running.iter().map(|r| wanted(r).saturating_sub(self.sequences.blocks_of(r.id))).sum()
    }

    /// Lets in who waits, in order, while there are places and blocks.
    fn admit(&mut self) {
        let mut at = 0;
        while at < self.waiting.len() && self.running.len() < self.sequences.max_sequences() {
            let Task { tokens, looks, .. } = &self.waiting[at];
            // Rows that others computed were not told.
            let shares = self.settings.shares_prefixes && looks.rows.is_empty();
            let shared = self.sequences.shared_prefix(if shares { tokens } else { &[] });
            if shares && self.is_being_computed(tokens, shared.tokens) {
                at += 1;
                continue;
            }
            // Blocks that others hold now cost nothing.
            let held_by_others = shared.tokens / BLOCK_TOKENS - shared.idle_blocks;
            let wanted = self.blocks_for(tokens.len()).saturating_sub(held_by_others);
            let available = self.sequences.free_tokens() / BLOCK_TOKENS;
            if !self.running.is_empty() && wanted + self.promised_blocks() > available {
                break;
            }
            let opened = match shares {
                true => self.sequences.open_with(tokens),
                false => self.sequences.open(),
            };
            let Ok(id) = opened else { break };
            let Some(mut task) = self.waiting.remove(at) else { break };
            let held = self.sequences.tokens(id).len();
            if task.usage.preemptions == 0 {
                task.usage.cached_tokens = held;
                task.usage.queued = task.submitted.elapsed();
                self.meter.queued.add(task.usage.queued);
            }
            self.meter.cached_tokens.fetch_add(held as u64, Ordering::Relaxed);
            let place = self.running.partition_point(|r| r.task.number < task.number);
            let parting = shared.in_blocks;
            self.running.insert(place, Running { task, id, held, parting });
        }
    }

    /// Whether a beginning of these tokens longer than what is `known` will be shared by a prompt that is being read: the next
    /// block, or up to where its states are kept.
    fn is_being_computed(&self, tokens: &[TokenId], known: usize) -> bool {
        self.running.iter().any(|r| {
            let next = self.border(r).unwrap_or(known + BLOCK_TOKENS);
            let prompt = &r.task.tokens[..r.task.usage.prompt_tokens];
            let is_wanted = known < next && next < tokens.len();
            is_wanted && !r.generates() && r.held < next && prompt.get(..next) == tokens.get(..next)
        })
    }

    /// The parts of the next step. Who does not fit for lack of blocks gives back its own, the youngest first.
    fn compose(&mut self) -> Vec<Part> {
        loop {
            if let Some(parts) = self.parts() {
                return parts;
            }
            // The oldest alone always fits.
            let Some(Running { mut task, id, .. }) = self.running.pop() else { return Vec::new() };
            self.sequences.close(id);
            task.usage.preemptions += 1;
            self.meter.preemptions.fetch_add(1, Ordering::Relaxed);
            self.waiting.push_front(task);
        }
    }

    /// The parts of the next step; `None` where somebody has to give way first.
    fn parts(&self) -> Option<Vec<Part>> {
        let mut blocks = self.sequences.free_tokens() / BLOCK_TOKENS;
        let mut room = self.sequences.info().micro_batch;
        let mut parts = Vec::with_capacity(self.running.len());
        for (i, running) in self.running.iter().enumerate().filter(|(_, r)| r.generates()) {
            let wanted = (running.held + 1).div_ceil(BLOCK_TOKENS) - self.sequences.blocks_of(running.id);
            blocks = blocks.checked_sub(wanted)?;
            room -= 1;
            parts.push(Part { running: i, tokens: 1 });
        }
        if !parts.is_empty() {
            room = room.min(self.part_beside_generation());
        }
        for (i, running) in self.running.iter().enumerate().filter(|(_, r)| !r.generates()) {
            let has = self.sequences.blocks_of(running.id);
            let fits = ((has + blocks) * BLOCK_TOKENS).saturating_sub(running.held);
            let mut tokens = running.left().min(room).min(fits);
            if let Some(border) = self.border(running).filter(|_| self.sequences.keeps_at_ends())
                && running.held < border
            {
                tokens = tokens.min(border - running.held);
            }
            if tokens < running.left() && !(self.settings.cuts_freely && tokens < BLOCK_TOKENS) {
                // A part ends at a block's border, unless it is the step's only one.
                let end = (running.held + tokens) / BLOCK_TOKENS * BLOCK_TOKENS;
                tokens = match end.saturating_sub(running.held) {
                    0 if parts.is_empty() => tokens,
                    whole => whole,
                };
            }
            if tokens == 0 {
                continue;
            }
            blocks -= (running.held + tokens).div_ceil(BLOCK_TOKENS).saturating_sub(has);
            room -= tokens;
            parts.push(Part { running: i, tokens });
        }
        (!parts.is_empty() || self.running.is_empty()).then_some(parts)
    }

    /// The border in a request's prompt at which its sequence's own states are kept; `None` where it has none, or shares nothing.
    fn border(&self, running: &Running) -> Option<usize> {
        let keeps = self.settings.shares_prefixes && self.sequences.shares_kept_states();
        keeps.then(|| checkpoint_border(running.task.usage.prompt_tokens))
    }

    /// Tokens of prompts in a step that others wait for.
    fn part_beside_generation(&self) -> usize {
        let least = if self.settings.cuts_freely { LEAST_PART } else { BLOCK_TOKENS };
        match self.settings.max_step {
            None => usize::MAX,
            Some(_) => (self.part_tokens as usize).max(least),
        }
    }

    /// Learns from the time of a step that had so many rows of generation, and tokens of prompts. What a token of a prompt takes
    /// depends on how many there are (few of them already touch most experts), so that the part itself is what is learnt: it
    /// grows slowly, and shrinks at once by as much as the step was too long beyond what it took for those who generate.
    fn learn(&mut self, generating: usize, read: usize, took: f64) {
        let Some(max_step) = self.settings.max_step.filter(|_| generating > 0) else { return };
        if read == 0 {
            self.generation_seconds = 0.7 * self.generation_seconds + 0.3 * took;
            return;
        }
        let others = self.generation_seconds.min(0.8 * took);
        let left = AIMED_SHARE * max_step.as_secs_f64() - others;
        let change = (left / (took - others)).clamp(0.0, MOST_GROWTH);
        // A part that its prompt cut short says nothing of longer ones.
        if change < 1.0 || read as f64 >= 0.8 * self.part_tokens {
            self.part_tokens = (read as f64 * change).max(LEAST_PART as f64);
        }
    }

    /// What a step gave: rows of logits, and what taps held for each part, where anybody asked.
    fn take_results(&mut self, parts: &[Part], mut tapped: Vec<Vec<TappedRows>>, took: Duration) {
        let tokens: usize = parts.iter().map(|part| part.tokens).sum();
        let read: usize =
            parts.iter().filter(|p| !self.running[p.running].generates()).map(|p| p.tokens).sum();
        self.meter.prompt_tokens.fetch_add(read as u64, Ordering::Relaxed);
        self.learn(tokens - read, read, took.as_secs_f64());
        let mut row = 0;
        let mut ended = Vec::new();
        for (at, part) in parts.iter().enumerate() {
            let wants_logits = part.tokens == self.running[part.running].left();
            let tapped = tapped.get_mut(at).map(std::mem::take).unwrap_or_default();
            self.running[part.running].held += part.tokens;
            self.running[part.running].task.keep(&tapped);
            let reason = match self.share(part.running, part.tokens) {
                Err(error) => Some(EndReason::Failed(error.to_string())),
                Ok(()) if wants_logits => self.choose(part.running, row, &tapped),
                Ok(()) => None,
            };
            row += usize::from(wants_logits);
            ended.extend(reason.map(|reason| (part.running, reason)));
        }
        ended.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
        for (at, reason) in ended {
            self.end(at, reason);
        }
    }

    /// Offers the full blocks of a request to others, and what its sequence's own states hold at their border, now that so many
    /// tokens more are held.
    fn share(&mut self, at: usize, tokens: usize) -> Result<(), BackendError> {
        if !self.settings.shares_prefixes {
            return Ok(());
        }
        let Running { task, id, held, parting } = &self.running[at];
        let (id, parting, before) = (*id, *parting, *held - tokens);
        let full = if self.settings.cuts_freely { *held } else { task.usage.prompt_tokens.min(*held) };
        let (border, wanted) = (self.border(&self.running[at]), before + 1..=*held);
        self.sequences.share(id, full);
        for border in border.into_iter().chain([parting]).filter(|border| wanted.contains(border)) {
            self.sequences.keep_states(id, border, true)?;
        }
        let last = self.sequences.shared_border(id);
        if wanted.contains(&last) {
            self.sequences.keep_states(id, last, false)?;
        }
        Ok(())
    }

    /// The next token of a request. A reason where it is the last, or none.
    fn choose(&mut self, at: usize, row: usize, tapped: &[TappedRows]) -> Option<EndReason> {
        let capacity = self.sequences.capacity_tokens();
        let Running { task, held, .. } = &mut self.running[at];
        let mut chosen = match task.chooser.next(&mut self.sequences, row, &task.tokens, &mut self.logits) {
            Ok(chosen) => chosen,
            Err(GenerateError::Constraint(error)) => return Some(EndReason::NotHeld(error.to_string())),
            Err(error) => return Some(EndReason::Failed(error.to_string())),
        };
        if !task.looks.experts.is_empty() {
            chosen.experts = last_experts(tapped);
        }
        let now = Instant::now();
        if task.end_tokens.binary_search(&chosen.token).is_ok() {
            return Some(EndReason::EndToken);
        }
        match task.last_token.replace(now) {
            Some(before) => self.meter.between_tokens.add(now - before),
            None => {
                let time = now - task.submitted;
                task.usage.first_token = Some(time);
                self.meter.first_token.add(time);
            }
        }
        task.tokens.push(chosen.token);
        task.usage.output_tokens += 1;
        self.meter.generated_tokens.fetch_add(1, Ordering::Relaxed);
        if task.listener.token(&chosen) == Flow::Stop {
            return Some(EndReason::Stopped);
        }
        if task.chooser.is_complete() {
            return Some(EndReason::Complete);
        }
        if task.max_tokens.is_some_and(|max| task.usage.output_tokens >= max) {
            return Some(EndReason::MaxTokens);
        }
        (*held >= capacity).then_some(EndReason::ContextFull)
    }

    fn end(&mut self, at: usize, mut reason: EndReason) {
        let Running { mut task, id, .. } = self.running.remove(at);
        if self.settings.shares_prefixes && !matches!(reason, EndReason::Failed(_)) {
            // The next prompt of a conversation may repeat the answer.
            let border = self.sequences.shared_border(id);
            if let Err(error) = self.sequences.keep_states(id, border, true) {
                reason = EndReason::Failed(error.to_string());
            }
        }
        self.sequences.close(id);
        task.usage.total = task.submitted.elapsed();
        task.listener.end(&Ended { reason, usage: task.usage, tapped: task.tapped });
        self.release_place();
    }

    /// Ends the requests of a step that failed.
    fn fail(&mut self, parts: &[Part], why: &str) {
        let mut places: Vec<usize> = parts.iter().map(|part| part.running).collect();
        places.sort_unstable_by_key(|at| std::cmp::Reverse(*at));
        for at in places {
            self.end(at, EndReason::Failed(why.to_owned()));
        }
    }

    /// A request has left.
    fn release_place(&self) {
        // A scheduler that is driven by hand takes requests that no queue counted.
        let less = |taken: usize| taken.checked_sub(1);
        let _ = self.meter.taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
    }

    fn count(&self) {
        let used = (self.sequences.pool_tokens() - self.sequences.free_tokens()) / BLOCK_TOKENS;
        self.meter.blocks_used.store(used, Ordering::Relaxed);
        self.meter.running.store(self.running.len(), Ordering::Relaxed);
        self.meter.waiting.store(self.waiting.len(), Ordering::Relaxed);
    }
}

/// Runs a step, and beside it finds what constraints allow next, on a thread of its own where there are any.
fn beside<T>(constraints: Vec<&mut dyn Constraint>, step: impl FnOnce() -> T) -> T {
    std::thread::scope(|scope| {
        if !constraints.is_empty() {
            let ask = || constraints.into_iter().for_each(|constraint| drop(constraint.allowed()));
            // A failure is said when a token is chosen, which asks again; without a thread all of it is found there.
            drop(std::thread::Builder::new().name("constraints".into()).spawn_scoped(scope, ask));
        }
        step()
    })
}
