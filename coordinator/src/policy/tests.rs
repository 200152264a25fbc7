//! Which of several settings counts.

use figment::Figment;
use figment::providers::{Format, Toml};

use super::*;

fn config(toml: &str) -> PolicyConfig {
    Figment::from(Toml::string(toml)).extract().unwrap()
}

fn tenant(models: Option<&[&str]>, toml: &str) -> TenantPolicy {
    let models = models.map(|models| models.iter().map(|&model| model.to_owned()).collect());
    TenantPolicy { models, settings: config(toml) }
}

fn operator(general: &str, model: &str) -> Result<OperatorPolicy, PolicyViolation> {
    OperatorPolicy::new(DefaultSettings::default(), config(general), [("a".to_owned(), config(model))])
}

/// Whether a request for the rule with this value of its parameter is served.
fn allows(policy: &Policy<'_>, rule: &str, value: f64) -> bool {
    let mut parameters = policy.rule_parameters();
    let named = rule_named("cosec.rule", rule, &parameters).unwrap();
    if let Some(parameter) = named.description().parameters.first() {
        parameters.0.insert(parameter.name.to_owned(), value);
    }
    policy.check_rule(&rule_named("cosec.rule", rule, &parameters).unwrap(), &parameters).is_ok()
}

#[test]
fn the_tenant_s_setting_comes_before_the_model_s_before_the_general_one() {
    let operator = operator("bounds.tau = 0.6\nbounds.lambda = 0.2\njudge = 'warped'", "bounds.tau = 0.2").unwrap();
    let nobody = TenantPolicy::default();
    let check = |policy: Policy<'_>, tau: f64, lambda: f64| {
        assert!(allows(&policy, "cosec", tau) && !allows(&policy, "cosec", tau + 1e-9));
        assert!(allows(&policy, "linear", lambda) && !allows(&policy, "linear", lambda - 1e-9));
        assert!(!allows(&policy, "product", 0.999));
    };
    check(operator.of("other", &nobody), 0.6, 0.2);
    check(operator.of("a", &nobody), 0.2, 0.2);
    let wider = tenant(None, "bounds.tau = 0.9\njudge = 'raw'");
    check(operator.of("a", &wider), 0.9, 0.2);
    assert_eq!(operator.of("a", &nobody).judge(), Judge::Warped);
    assert_eq!(operator.of("a", &wider).judge(), Judge::Raw);
}

#[test]
fn a_bound_that_is_stricter_than_the_default_takes_its_place() {
    let strict = "expert_temperature = [0.1, 0.3]\ntau = 0.2\nlambda = 0.7";
    let operator = operator(&format!("[bounds]\n{strict}"), "").unwrap();
    let nobody = TenantPolicy::default();
    let policy = operator.of("a", &nobody);
    let parameters = policy.rule_parameters().0;
    assert_eq!((parameters["tau"], parameters["lambda"], parameters["alpha"]), (0.2, 0.7, 1.0));
    assert_eq!((policy.expert_temperature(), policy.expert_top_p()), (0.3, 0.95));
    policy.check_expert_temperature(0.1).unwrap();
    policy.check_expert_temperature(0.4).unwrap_err();
}

#[test]
fn a_tenant_s_entry_is_checked_as_a_whole() {
    let operator = operator("", "").unwrap();
    let check = |tenant: TenantPolicy, named: &str| {
        let problem = operator.check_tenant(&tenant).unwrap_err().to_string();
        assert!(problem.contains(named), "{problem}");
    };
    check(tenant(Some(&["b"]), ""), "models is \"b\"; it must be among the configured ones: a");
    check(tenant(None, "allowed_rules = ['magic']"), "policy.allowed_rules is \"magic\"");
    check(tenant(None, "bounds.colour = 1.0"), "policy.bounds.colour");
    check(tenant(None, "allowed_rules = ['linear']"), "defaults.rule is cosec");
    // Without a model there is nothing to serve.
    operator.check_tenant(&tenant(Some(&[]), "allowed_rules = ['linear']")).unwrap();
    operator.check_tenant(&tenant(Some(&["a"]), "allowed_rules = ['cosec', 'base_only']")).unwrap();
}
