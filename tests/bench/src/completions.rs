//! Streamed completions over HTTP, as clients have them: with the time of every event, and taken up again at another
//! coordinator where the first one is lost.

use std::time::Duration;

use anyhow::{Context, Result};
use reqwest::header::RETRY_AFTER;
use reqwest::{Client, Response};
use serde_json::Value;
use tokio::time::{Instant, sleep};

/// Time between two attempts to take a stream up again.
const RESUME_PAUSE: Duration = Duration::from_millis(20);

/// Attempts before a stream counts as lost.
const RESUME_ATTEMPTS: u32 = 100;

/// A client without a bound on its connections.
///
/// # Errors
/// When the system gives none.
pub fn client() -> Result<Client> {
    Ok(Client::builder().pool_max_idle_per_host(usize::MAX).tcp_nodelay(true).build()?)
}

/// Why there is no stream.
#[derive(Clone, Debug)]
pub enum NoStream {
    /// Status 429 or 503, and whether it said when to come again.
    Refused {
        /// Whether there was a Retry-After.
        with_hint: bool,
    },
    /// Anything else, in words.
    Failed(String),
    /// Nothing answers there.
    Unreachable(String),
}

/// Server-sent events of one answer, in order.
pub struct Events {
    response: Response,
    frames: Frames,
}

/// One event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// Empty where it has none.
    pub id: String,
    /// Without the field's name.
    pub data: String,
}

impl Events {
    /// Posts `body` to `/v1/completions` at `address`, from after the event `last` where that is not empty.
    ///
    /// # Errors
    /// Why there is no stream.
    pub async fn open(client: &Client, address: &str, body: &Value, last: &str) -> Result<Self, NoStream> {
        let mut request = client.post(format!("http://{address}/v1/completions")).json(body);
        if !last.is_empty() {
            request = request.header("Last-Event-ID", last);
        }
        let response = request.send().await.map_err(|error| NoStream::Unreachable(error.to_string()))?;
        match response.status().as_u16() {
            200 => Ok(Self { response, frames: Frames::default() }),
            429 | 503 => Err(NoStream::Refused { with_hint: response.headers().contains_key(RETRY_AFTER) }),
            status => {
                let text = response.text().await.unwrap_or_default();
                Err(NoStream::Failed(format!("status {status}: {text}")))
            }
        }
    }

    /// The next event; `None` at the end of the body.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn next(&mut self) -> Result<Option<Event>> {
        loop {
            if let Some(event) = self.frames.next()? {
                return Ok(Some(event));
            }
            match self.response.chunk().await? {
                Some(piece) => self.frames.push(&piece),
                None => return Ok(None),
            }
        }
    }
}

/// Events out of bytes, however these are cut.
#[derive(Debug, Default)]
struct Frames {
    buffer: Vec<u8>,
    /// Bytes at the front that were handed out.
    used: usize,
}

impl Frames {
    fn push(&mut self, piece: &[u8]) {
        self.buffer.drain(..self.used);
        self.used = 0;
        self.buffer.extend_from_slice(piece);
    }

    fn next(&mut self) -> Result<Option<Event>> {
        loop {
            let rest = &self.buffer[self.used..];
            let Some(length) = rest.windows(2).position(|pair| pair == b"\n\n") else { return Ok(None) };
            let event = Event::parse(std::str::from_utf8(&rest[..length]).context("an event is not UTF-8")?);
            self.used += length + 2;
            // A comment keeps the connection alive and is no event.
            if event != Event::default() {
                return Ok(Some(event));
            }
        }
    }
}

impl Event {
    fn parse(frame: &str) -> Self {
        let field =
            |name: &str| frame.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().to_owned();
        Self { id: field("id: "), data: field("data: ") }
    }
}

/// What a client has of a completion.
#[derive(Clone, Debug)]
pub struct Received {
    /// When it was asked for.
    pub asked: Instant,
    /// Ids of the tokens, by the report.
    pub tokens: Vec<u32>,
    /// Of every event with tokens: when it came, and how many there were.
    pub arrivals: Vec<(Instant, usize)>,
    /// Times that the stream was taken up again.
    pub resumed: u32,
}

/// Streams a completion whose `body` asks for a report. A stream that breaks off is taken up again at the next of
/// `addresses`, the first of which is tried first.
///
/// # Errors
/// Why there is no stream, or why it did not come to its end.
pub async fn complete(client: &Client, addresses: &[String], body: &Value) -> Result<Received, NoStream> {
    let mut received = Received { asked: Instant::now(), tokens: Vec::new(), arrivals: Vec::new(), resumed: 0 };
    let mut last = String::new();
    let mut attempts = 0;
    for address in addresses.iter().cycle() {
        let lost = match Events::open(client, address, body, &last).await {
            Ok(mut events) => match received.read(&mut events, &mut last).await? {
                Ending::Done => return Ok(received),
                Ending::Broken(why) => {
                    received.resumed += 1;
                    why
                }
            },
            // What was begun is not given up for a refusal.
            Err(NoStream::Refused { .. }) if !last.is_empty() => "refused".to_owned(),
            Err(NoStream::Unreachable(why)) => why,
            Err(other) => return Err(other),
        };
        attempts += 1;
        if attempts == RESUME_ATTEMPTS {
            return Err(NoStream::Failed(format!("not taken up again: {lost}")));
        }
        sleep(RESUME_PAUSE).await;
    }
    Err(NoStream::Failed("there is no coordinator".to_owned()))
}

enum Ending {
    Done,
    Broken(String),
}

impl Received {
    async fn read(&mut self, events: &mut Events, last: &mut String) -> Result<Ending, NoStream> {
        loop {
            let event = match events.next().await {
                Ok(Some(event)) if event.data == "[DONE]" => return Ok(Ending::Done),
                Ok(Some(event)) => event,
                Ok(None) => return Ok(Ending::Broken("the stream ended without [DONE]".to_owned())),
                Err(error) => return Ok(Ending::Broken(error.to_string())),
            };
            let ids = tokens(&event.data).ok_or_else(|| NoStream::Failed(format!("an event says {}", event.data)))?;
            *last = event.id;
            if !ids.is_empty() {
                self.arrivals.push((Instant::now(), ids.len()));
                self.tokens.extend(ids);
            }
        }
    }
}

/// Ids of the tokens that a chunk reports; `None` if it is no chunk.
fn tokens(data: &str) -> Option<Vec<u32>> {
    let chunk: Value = serde_json::from_str(data).ok()?;
    let report = chunk.pointer("/choices/0/cosec/report")?.as_array()?;
    report.iter().map(|entry| entry.get("id")?.as_u64()?.try_into().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_whatever_the_pieces() {
        let text = ": still here\n\nid: a\ndata: {\"x\":\"é\"}\n\ndata: [DONE]\n\n".as_bytes();
        for size in [1, 3, 100] {
            let mut frames = Frames::default();
            let mut events = Vec::new();
            for piece in text.chunks(size) {
                frames.push(piece);
                while let Ok(Some(event)) = frames.next() {
                    events.push((event.id, event.data));
                }
            }
            let event = |id: &str, data: &str| (id.to_owned(), data.to_owned());
            assert_eq!(events, [event("a", "{\"x\":\"é\"}"), event("", "[DONE]")]);
        }
    }

    #[test]
    fn tokens_are_those_reported() {
        let chunk = r#"{"choices":[{"text":"ab","cosec":{"report":[{"id":7},{"id":9}]}}]}"#;
        assert_eq!(tokens(chunk), Some(vec![7, 9]));
        assert_eq!(tokens(r#"{"error":{"message":"no"}}"#), None);
    }
}
