//! Streams of completions as clients read them.

use std::time::Duration;

use futures::StreamExt;
use parking_lot::Mutex;
use serde_json::Value;

/// An event of a stream.
#[derive(Clone, Debug)]
pub struct Event {
    /// Id from which the stream can be resumed.
    pub id: Option<String>,
    /// JSON, or `[DONE]`.
    pub data: String,
}

impl Event {
    /// Whether the stream came to its end.
    #[must_use]
    pub fn is_last(&self) -> bool {
        self.data == "[DONE]"
    }

    /// The chunk; `None` for the last event.
    #[must_use]
    pub fn chunk(&self) -> Option<Value> {
        (!self.is_last()).then(|| serde_json::from_str(&self.data).unwrap())
    }
}

/// Reads events of the coordinator at `http` until the stream ends, in whatever way, or until `enough` have come.
///
/// # Errors
/// Why there is no stream.
pub async fn read(
    http: &str,
    body: &Value,
    last_event_id: Option<&str>,
    enough: usize,
) -> Result<Vec<Event>, String> {
    let mut request = reqwest::Client::new().post(format!("{http}/v1/completions")).json(body);
    if let Some(id) = last_event_id {
        request = request.header("Last-Event-ID", id);
    }
    let answer = request.send().await.map_err(|error| error.to_string())?;
    if !answer.status().is_success() {
        return Err(format!("{}: {}", answer.status(), answer.text().await.unwrap_or_default()));
    }
    let mut bytes = answer.bytes_stream();
    let (mut events, mut text) = (Vec::new(), String::new());
    while let Some(Ok(piece)) = bytes.next().await {
        text += std::str::from_utf8(&piece).unwrap();
        while let Some((frame, rest)) = text.split_once("\n\n") {
            let line = |name: &str| frame.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
            // A frame without data is a comment that shows that the stream lives.
            events.extend(line("data: ").map(|data| Event { id: line("id: "), data }));
            text = rest.to_owned();
            if events.len() == enough {
                return Ok(events);
            }
        }
    }
    Ok(events)
}

/// Reads a stream to its end as a client that never gives up: what one coordinator does not send, the next one does,
/// from where the last one stopped. Returns the events and how often it was resumed.
///
/// # Panics
/// When a coordinator reports anything but its shutdown.
pub async fn read_from_any(coordinators: &Mutex<Vec<String>>, body: &Value) -> (Vec<Event>, usize) {
    let (mut events, mut resumed) = (Vec::<Event>::new(), 0);
    for turn in 0.. {
        let http = {
            let known = coordinators.lock();
            known[turn % known.len()].clone()
        };
        let last = events.last().and_then(|event| event.id.clone());
        let Ok(more) = read(&http, body, last.as_deref(), usize::MAX).await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        resumed += usize::from(last.is_some());
        for event in more {
            match event.chunk() {
                Some(chunk) if chunk["error"].is_object() => {
                    assert_eq!(chunk["error"]["code"], "unavailable", "{chunk}")
                }
                Some(_) | None => events.push(event),
            }
        }
        if events.last().is_some_and(Event::is_last) {
            break;
        }
    }
    (events, resumed)
}

/// What the chunks say of each choice by number, with what they say of all (usage) at the end, but not what names the
/// request.
///
/// # Panics
/// When the stream broke off or reports an error.
#[must_use]
pub fn choices(events: &[Event]) -> Vec<Vec<Value>> {
    assert!(events.last().is_some_and(Event::is_last), "the stream broke off: {:?}", events.last());
    let mut choices = Vec::new();
    let mut of_all = Vec::new();
    for chunk in events.iter().filter_map(Event::chunk) {
        assert!(chunk["choices"].is_array(), "{chunk}");
        let content = serde_json::json!([chunk["choices"], chunk["usage"]]);
        match chunk["choices"][0]["index"].as_u64() {
            Some(index) => {
                let index = index as usize;
                choices.resize(choices.len().max(index + 1), Vec::new());
                choices[index].push(content);
            }
            None => of_all.push(content),
        }
    }
    choices.push(of_all);
    choices
}
