//! Tokens of an issuer on loopback, good ones and all that somebody might try.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::routing::get;
use axum::{Json, Router};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use cosec_proto::metrics::MetricRegistry;
use hmac::{Hmac, Mac};
use parking_lot::Mutex;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use serde_json::{Value, json};
use sha2::Sha256;

use super::config::OidcConfig;
use super::{TokenError, TokenIssuer};
use crate::tenant::metrics::TenantMetrics;

const ISSUER: &str = "https://issuer.example";

/// Made for this test by the Python package cryptography, like the tokens that it verifies; they are good until 2100.
const RSA_MODULUS: &str = concat!(
    "swQ7dREiFU3jAgHlVpeoDFi0vF15NEkKLlg5gk5t1eby-e88WmKkyn4EaayLjQPhpAVxp50vMUFaDJ6ZV75k7ZvTqBn2XYZX",
    "bhhVThMdzSAGzq5YPS2OQMFoRVBBRAtlvQL0A83T_9pg0BGFdS5Bb1dwEOu6NfNCs9VTn59zcUayX9twlqY0P8gbu-kP_6zq",
    "fjz2QuaxjW7nsOqcGv99_V_AYIQ1TuKQjI1KKU9fX-KHe5t5rzyEhIkIXFGr_5mDZFABS_z30dDNSKzHM8ZUHEpzNkPb_bny",
    "ancDYK5hFA9pMu_pu9nSgLfVaGNrQdBtZjnGlMRwKxk_XMpRSQbKHQ",
);

/// For `cosec`, of the tenant `team`.
const RS256: &str = concat!(
    "eyJhbGciOiJSUzI1NiIsImtpZCI6InJzYSJ9.eyJpc3MiOiJodHRwczovL2lzc3Vlci5leGFtcGxlIiwiYXVkIjoiY29zZWM",
    "iLCJzdWIiOiJ0ZWFtIiwiZXhwIjo0MTAyNDQ0ODAwfQ.i1TyEYQgSF7WtY51EpQOdkPPLryeJ-F6HNDmhADmLEeJ0tGSryOA",
    "fowCKZYqmx0CuCCmcU8QbQbkg_15i-Eg_oo8gf1KQxaeAJmQp4UKGzaebszfF3V9q2ipUlQKqd6zcTHPgaAQWXtn_y8w0iaH",
    "UF5tXQwgG1uih4c-tL_jpHY6pCctMSHxEFJKpchb_wxqHlZew7xwjWbZXqDltt6HgFOxQYpcCyuEnmf1gr4rjDdaBYZ99IUJ",
    "T2EqmU2DaX_u-D-mFaHidzpBnldC1oQXDyLPE6KMGOF20vi6NYrcnGFGMOXhyKdD_Lmh67OCMBdQ1iOtGnRgUgUnAcsosivW",
    "2g",
);

/// The same.
const PS256: &str = concat!(
    "eyJhbGciOiJQUzI1NiIsImtpZCI6InJzYSJ9.eyJpc3MiOiJodHRwczovL2lzc3Vlci5leGFtcGxlIiwiYXVkIjoiY29zZWM",
    "iLCJzdWIiOiJ0ZWFtIiwiZXhwIjo0MTAyNDQ0ODAwfQ.dxrNJQ86Vm5E4p83wfuWtCtH43JUDoEdizPD33kEOYFpW1MopVj9",
    "P8qxifJivPGF7BLVCuo7nvPJrITPmKORIuU_dQXXLdxsKQSejEm6gR2G_neTa5baddXITUIzf-FSPUntiP-CrgNiB9Ce21I8",
    "ftDCToQDBEukP_I0gMs9JJyCpAxumd9xq3c37qQri8BBFiq-ijbhbJp-xIlkM9doRDUchMjtRbQjK3cEDS9OsvpigZHW-RQM",
    "JuDweOoYm_CSSa07xLq4C5P_dX0ETQrzx4FdIMd8laPXCwIkcI8gOQ7QaIEXEON46VIhnR2vb9j8Vm64etRmnDUuc5CEObvB",
    "sg",
);

/// Of a key on the curve P-384.
const P384_X: &str = "hWowhJc0dTI8FfqvV14u5r-tdo0XguwN0ArVKiLPbrwU1kGdZLv2Sr9VSYjZBUyz";

/// Of the same key.
const P384_Y: &str = "xwDSHsmCktRnEFdcxx93V1rE89_lKU0hgyQqdDIvjfhC4BMmMSTTrkXr1PybFxdX";

/// The same claims, signed by it.
const ES384: &str = concat!(
    "eyJhbGciOiJFUzM4NCIsImtpZCI6InAzODQifQ.eyJpc3MiOiJodHRwczovL2lzc3Vlci5leGFtcGxlIiwiYXVkIjoiY29zZ",
    "WMiLCJzdWIiOiJ0ZWFtIiwiZXhwIjo0MTAyNDQ0ODAwfQ.2p8YI69YhtJJI154FiMWpfAfRQNcHLoZz967M-J5hGGyoufGki",
    "A3HUyfwh92KIiIe8bZKbnuGvIW9kL4HGla83RwDj5BLM9-uZSB_gmhey_VEiz1LdquqKdgcSUWqxfo",
);

/// A key pair of the issuer.
struct SigningKey {
    id: String,
    pair: EcdsaKeyPair,
}

impl SigningKey {
    fn new(id: &str) -> Self {
        let random = SystemRandom::new();
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, document.as_ref(), &random).unwrap();
        Self { id: id.to_owned(), pair }
    }

    fn published(&self) -> Value {
        let (x, y) = self.pair.public_key().as_ref()[1..].split_at(32);
        let [x, y] = [x, y].map(|bytes| URL_SAFE_NO_PAD.encode(bytes));
        json!({"kty": "EC", "crv": "P-256", "use": "sig", "kid": self.id, "x": x, "y": y})
    }

    fn token(&self, claims: &Value) -> String {
        let message = unsigned(&json!({"alg": "ES256", "typ": "JWT", "kid": self.id}), claims);
        let signature = self.pair.sign(&SystemRandom::new(), message.as_bytes()).unwrap();
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

fn unsigned(header: &Value, claims: &Value) -> String {
    let [header, claims] = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string()));
    format!("{header}.{claims}")
}

fn claims() -> Value {
    json!({"iss": ISSUER, "aud": ["other", "cosec"], "sub": "team", "exp": in_seconds(60)})
}

fn in_seconds(seconds: i64) -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64 + seconds
}

/// An issuer on loopback; its keys change, it counts how often they are fetched, and it may fail.
#[derive(Clone, Default)]
struct Issuer {
    keys: Arc<Mutex<Vec<Value>>>,
    fetches: Arc<AtomicUsize>,
    /// What it sends in place of its keys.
    broken: Arc<Mutex<Option<String>>>,
}

impl Issuer {
    /// Serves `/keys` and the discovery document; returns its URL.
    async fn start(&self, keys: &[Value]) -> String {
        *self.keys.lock() = keys.to_vec();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let discovery = json!({"issuer": url, "jwks_uri": format!("{url}/keys")});
        let served = self.clone();
        let document = move || async move {
            served.fetches.fetch_add(1, Ordering::SeqCst);
            let keys = json!({"keys": *served.keys.lock()}).to_string();
            served.broken.lock().clone().unwrap_or(keys)
        };
        let routes = Router::new()
            .route("/keys", get(document))
            .route("/.well-known/openid-configuration", get(async move || Json(discovery.clone())));
        tokio::spawn(async move { axum::serve(listener, routes).await });
        url
    }
}

fn config(url: &str) -> OidcConfig {
    OidcConfig {
        issuer: ISSUER.to_owned(),
        audiences: vec!["cosec".to_owned()],
        jwks_uri: Some(format!("{url}/keys")),
        leeway_seconds: 5,
        refresh_seconds: 3600,
        timeout_seconds: 5,
        ..OidcConfig::default()
    }
}

fn tokens_of(config: &OidcConfig) -> TokenIssuer {
    let metrics = TenantMetrics::register(&MetricRegistry::default()).unwrap();
    let (tokens, fetching) = TokenIssuer::new(config, metrics).unwrap();
    tokio::spawn(fetching);
    tokens
}

fn changed(change: impl FnOnce(&mut Value)) -> Value {
    let mut claims = claims();
    change(&mut claims);
    claims
}

async fn refused(tokens: &TokenIssuer, token: &str, why: &str) {
    match tokens.tenant_of(token).await {
        Err(TokenError::Invalid(problem)) => assert!(problem.contains(why), "{problem}, not {why}"),
        other => panic!("{other:?}, not {why}"),
    }
}

#[tokio::test]
async fn a_valid_token_names_its_tenant() {
    let key = SigningKey::new("one");
    let url = Issuer::default().start(&[key.published()]).await;
    let tokens = tokens_of(&config(&url));
    let accepted = async |claims: Value| tokens.tenant_of(&key.token(&claims)).await;
    assert_eq!(accepted(claims()).await.unwrap(), "team");
    assert_eq!(accepted(changed(|claims| claims["aud"] = "cosec".into())).await.unwrap(), "team");
    // Clocks differ by less than the leeway.
    assert_eq!(accepted(changed(|claims| claims["exp"] = in_seconds(-2).into())).await.unwrap(), "team");
    assert_eq!(accepted(changed(|claims| claims["nbf"] = in_seconds(2).into())).await.unwrap(), "team");
    let by_department = OidcConfig { tenant_claim: "department".to_owned(), ..config(&url) };
    let tokens = tokens_of(&by_department);
    let token = key.token(&changed(|claims| claims["department"] = "red".into()));
    assert_eq!(tokens.tenant_of(&token).await.unwrap(), "red");
    refused(&tokens, &key.token(&claims()), "no claim department").await;
}

#[tokio::test]
async fn what_is_wrong_with_a_token_is_named() {
    let (key, stranger) = (SigningKey::new("one"), SigningKey::new("one"));
    let tokens = tokens_of(&config(&Issuer::default().start(&[key.published()]).await));
    let check = async |change: &dyn Fn(&mut Value), why: &str| {
        refused(&tokens, &key.token(&changed(change)), why).await;
    };
    check(&|claims| claims["exp"] = in_seconds(-60).into(), "expired").await;
    check(&|claims| claims["exp"] = Value::Null, "no claim exp").await;
    check(&|claims| claims["exp"] = "never".into(), "no claim exp").await;
    check(&|claims| claims["nbf"] = in_seconds(60).into(), "not valid yet").await;
    check(&|claims| claims["nbf"] = "tomorrow".into(), "cannot be read").await;
    check(&|claims| claims["aud"] = "other".into(), "another audience").await;
    check(&|claims| claims["aud"] = Value::Null, "no claim aud").await;
    check(&|claims| claims["iss"] = "https://other.example".into(), "another issuer").await;
    check(&|claims| claims["iss"] = Value::Null, "no claim iss").await;
    check(&|claims| claims["sub"] = Value::Null, "no claim sub").await;
    check(&|claims| claims["sub"] = 7.into(), "no claim sub").await;
    check(&|claims| claims["sub"] = "".into(), "not a name").await;
    check(&|claims| claims["sub"] = "a\nb".into(), "not a name").await;
    check(&|claims| claims["sub"] = "x".repeat(300).into(), "not a name").await;
    refused(&tokens, &stranger.token(&claims()), "signature").await;
    let token = key.token(&claims());
    let (head, signature) = token.rsplit_once('.').unwrap();
    refused(&tokens, &format!("{head}."), "signature").await;
    let other = unsigned(&json!({"alg": "ES256", "kid": "one"}), &changed(|claims| claims["sub"] = "root".into()));
    refused(&tokens, &format!("{other}.{signature}"), "signature").await;
    refused(&tokens, "eyJ.e30.", "cannot be read").await;
    refused(&tokens, &("eyJ".to_owned() + &"a".repeat(20_000) + ".b.c"), "bytes").await;
}

#[tokio::test]
async fn nobody_but_the_issuer_signs() {
    let key = SigningKey::new("one");
    let published = key.published();
    // A secret among the keys is none that tokens may be signed with.
    let secret = json!({"kty": "oct", "kid": "shared", "k": URL_SAFE_NO_PAD.encode("secret"), "alg": "HS256"});
    let tokens = tokens_of(&config(&Issuer::default().start(&[published.clone(), secret]).await));
    let none = unsigned(&json!({"alg": "none", "kid": "one"}), &claims());
    refused(&tokens, &format!("{none}."), "cannot be read").await;
    let hmac = |id: &str, secret: &[u8]| {
        let message = unsigned(&json!({"alg": "HS256", "kid": id}), &claims());
        let mut mac = Hmac::<Sha256>::new_from_slice(secret).unwrap();
        mac.update(message.as_bytes());
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes()))
    };
    let public = URL_SAFE_NO_PAD.decode(published["x"].as_str().unwrap()).unwrap();
    for token in [hmac("one", &public), hmac("one", published.to_string().as_bytes()), hmac("shared", b"secret")] {
        refused(&tokens, &token, "HS256, which is not allowed").await;
    }
    // Its own key in the token's head changes nothing.
    let stranger = SigningKey::new("one");
    let message = unsigned(&json!({"alg": "ES256", "kid": "one", "jwk": stranger.published()}), &claims());
    let signature = stranger.pair.sign(&SystemRandom::new(), message.as_bytes()).unwrap();
    refused(&tokens, &format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature)), "signature").await;
    let critical = unsigned(&json!({"alg": "ES256", "kid": "one", "crit": ["b64"]}), &claims());
    refused(&tokens, &format!("{critical}.AA"), "extensions").await;
}

#[tokio::test]
async fn algorithms_are_those_of_the_key_and_of_the_configuration() {
    let rsa = |more: Value| {
        let mut key = json!({"kty": "RSA", "kid": "rsa", "n": RSA_MODULUS, "e": "AQAB"});
        key.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        key
    };
    let p384 = json!({"kty": "EC", "crv": "P-384", "kid": "p384", "x": P384_X, "y": P384_Y});
    let broken = [json!({"kty": "EC", "crv": "P-999", "kid": "rsa"}), json!(7)];
    let keys = [broken[0].clone(), broken[1].clone(), rsa(json!({})), p384];
    let url = Issuer::default().start(&keys).await;
    let tokens = tokens_of(&config(&url));
    for token in [RS256, PS256, ES384] {
        assert_eq!(tokens.tenant_of(token).await.unwrap(), "team");
    }
    let only = OidcConfig { algorithms: vec!["ES384".to_owned()], ..config(&url) };
    refused(&tokens_of(&only), RS256, "RS256, which is not allowed").await;
    // A key that says what it is for is for nothing else.
    let url = Issuer::default().start(&[rsa(json!({"alg": "PS256"}))]).await;
    let tokens = tokens_of(&config(&url));
    assert_eq!(tokens.tenant_of(PS256).await.unwrap(), "team");
    refused(&tokens, RS256, "no such key").await;
    let url = Issuer::default().start(&[rsa(json!({"use": "enc"})), SigningKey::new("one").published()]).await;
    refused(&tokens_of(&config(&url)), RS256, "no such key").await;
}

#[tokio::test]
async fn rotated_keys_are_found_and_unknown_ones_cost_the_issuer_little() {
    let (old, new, unknown) = (SigningKey::new("old"), SigningKey::new("new"), SigningKey::new("unknown"));
    let issuer = Issuer::default();
    let url = issuer.start(&[old.published()]).await;
    let tokens = tokens_of(&config(&url));
    assert_eq!(tokens.tenant_of(&old.token(&claims())).await.unwrap(), "team");
    for _ in 0..50 {
        refused(&tokens, &unknown.token(&claims()), "no such key").await;
    }
    assert_eq!(issuer.fetches.load(Ordering::SeqCst), 1);
    let tokens = tokens_of(&OidcConfig { min_refresh_seconds: 1, ..config(&url) });
    assert_eq!(tokens.tenant_of(&old.token(&claims())).await.unwrap(), "team");
    *issuer.keys.lock() = vec![new.published()];
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(tokens.tenant_of(&new.token(&claims())).await.unwrap(), "team");
    refused(&tokens, &old.token(&claims()), "no such key").await;
}

#[tokio::test]
async fn keys_last_while_the_issuer_is_down_and_not_for_ever() {
    let key = SigningKey::new("one");
    let issuer = Issuer::default();
    let url = issuer.start(&[key.published()]).await;
    let often = OidcConfig { refresh_seconds: 1, min_refresh_seconds: 1, ..config(&url) };
    let patient = tokens_of(&often);
    let strict = tokens_of(&OidcConfig { stale_seconds: 2, ..often });
    let token = key.token(&changed(|claims| claims["exp"] = in_seconds(600).into()));
    assert_eq!(patient.tenant_of(&token).await.unwrap(), "team");
    for broken in ["", "{}", r#"{"keys": []}"#, &"x".repeat(2 << 20)] {
        *issuer.broken.lock() = Some(broken.to_owned());
        let before = issuer.fetches.load(Ordering::SeqCst);
        while issuer.fetches.load(Ordering::SeqCst) < before + 2 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    while strict.tenant_of(&token).await != Err(TokenError::IssuerSilent) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(patient.tenant_of(&token).await.unwrap(), "team");
    *issuer.broken.lock() = None;
    while strict.tenant_of(&token).await.is_err() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn an_issuer_that_is_not_there_is_nobodys_fault() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    // It takes connections and never answers.
    let tokens = tokens_of(&OidcConfig { timeout_seconds: 1, ..config(&url) });
    let token = SigningKey::new("one").token(&claims());
    assert_eq!(tokens.tenant_of(&token).await, Err(TokenError::IssuerSilent));
}

#[tokio::test]
async fn the_discovery_document_is_of_the_issuer_itself() {
    let key = SigningKey::new("one");
    let url = Issuer::default().start(&[key.published()]).await;
    let discovered = OidcConfig { issuer: url.clone(), jwks_uri: None, ..config(&url) };
    let token = key.token(&changed(|claims| claims["iss"] = url.as_str().into()));
    assert_eq!(tokens_of(&discovered).tenant_of(&token).await.unwrap(), "team");
    let other = OidcConfig { issuer: format!("{url}/"), ..discovered };
    assert_eq!(tokens_of(&other).tenant_of(&token).await, Err(TokenError::IssuerSilent));
}
