//! Tenants by the tokens (JWTs) of an OpenID Connect issuer.

pub mod config;

mod issuer_keys;

mod signature;

#[cfg(test)]
mod tests;

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, Validation};
use serde_json::{Map, Value};

use self::config::OidcConfig;
use self::issuer_keys::{IssuerKeys, NoKey};
use super::metrics::TenantMetrics;

/// Longest token: they travel in a header.
const MAX_TOKEN_BYTES: usize = 16 << 10;

/// Longest name of a tenant, in characters.
const MAX_NAME_CHARACTERS: usize = 256;

/// Verifies the tokens of one issuer.
pub struct TokenIssuer {
    issuer: String,
    tenant_claim: String,
    algorithms: Vec<Algorithm>,
    validation: Validation,
    keys: IssuerKeys,
}

/// Why a token names no tenant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It is wrong, too old, or for somebody else.
    #[error("the token is not valid: {0}")]
    Invalid(String),
    /// Nobody can tell: the issuer does not answer.
    #[error("tokens cannot be checked now, because the issuer does not answer")]
    IssuerSilent,
}

impl TokenIssuer {
    /// The returned task must run for keys to be known.
    ///
    /// # Errors
    /// Names the file that cannot be read.
    pub fn new(
        config: &OidcConfig,
        metrics: TenantMetrics,
    ) -> Result<(Self, impl Future<Output = ()> + use<>), String> {
        signature::install();
        let mut validation =
            Validation { leeway: config.leeway_seconds, validate_nbf: true, ..Validation::default() };
        validation.set_audience(&config.audiences);
        validation.set_issuer(&[&config.issuer]);
        validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        let (keys, fetching) = IssuerKeys::new(config, metrics)?;
        let issuer = Self {
            issuer: config.issuer.clone(),
            tenant_claim: config.tenant_claim.clone(),
            algorithms: config.algorithms(),
            validation,
            keys,
        };
        Ok((issuer, fetching))
    }

    /// URL of the issuer.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.issuer
    }

    /// Whether `credential` looks like a token rather than a key: a JSON object, coded, and two parts more.
    #[must_use]
    pub fn is_token(credential: &str) -> bool {
        credential.starts_with("eyJ") && credential.split('.').count() == 3
    }

    /// The tenant that a token names.
    ///
    /// # Errors
    /// [`TokenError`] says what is wrong with it.
    pub async fn tenant_of(&self, token: &str) -> Result<String, TokenError> {
        let invalid = |problem: &str| TokenError::Invalid(problem.to_owned());
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::Invalid(format!("it has more than {MAX_TOKEN_BYTES} bytes")));
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| invalid("it cannot be read"))?;
        if !self.algorithms.contains(&header.alg) {
            return Err(TokenError::Invalid(format!("it is signed by {:?}, which is not allowed", header.alg)));
        }
        if header.crit.is_some() {
            return Err(invalid("it asks for extensions that are not known here"));
        }
        let key = self.keys.find(header.kid.as_deref(), header.alg).await.map_err(|reason| match reason {
            NoKey::Unknown => invalid("the issuer has no such key"),
            NoKey::IssuerSilent => TokenError::IssuerSilent,
        })?;
        let mut validation = self.validation.clone();
        validation.algorithms = vec![header.alg];
        let token = jsonwebtoken::decode::<Map<String, Value>>(token, &key, &validation);
        let claims = token.map_err(|error| TokenError::Invalid(problem(error.kind())))?.claims;
        match claims.get(&self.tenant_claim).and_then(Value::as_str) {
            Some(name) if is_name(name) => Ok(name.to_owned()),
            Some(_) => Err(TokenError::Invalid(format!("its claim {} is not a name", self.tenant_claim))),
            None => Err(TokenError::Invalid(format!("it has no claim {} with a name", self.tenant_claim))),
        }
    }
}

/// Whether `name` is fit for logs and metrics.
fn is_name(name: &str) -> bool {
    !name.is_empty() && name.chars().count() <= MAX_NAME_CHARACTERS && !name.chars().any(char::is_control)
}

fn problem(kind: &ErrorKind) -> String {
    match kind {
        ErrorKind::ExpiredSignature => "it has expired".to_owned(),
        ErrorKind::ImmatureSignature => "it is not valid yet".to_owned(),
        ErrorKind::InvalidAudience => "it is for another audience".to_owned(),
        ErrorKind::InvalidIssuer => "it is of another issuer".to_owned(),
        ErrorKind::InvalidSignature => "its signature is wrong".to_owned(),
        ErrorKind::MissingRequiredClaim(claim) => format!("it has no claim {claim}"),
        _ => "it cannot be read".to_owned(),
    }
}
