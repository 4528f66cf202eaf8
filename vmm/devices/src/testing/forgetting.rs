//! Plants the fault the contract is there to find, once for every field: a restored device that has forgotten it.
//!
//! A field whose loss no history shows is either no state at all, or one that the random guest never comes to use; both
//! are worth knowing. The fields that are constant by construction are named where the test is.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::contract::{ContractRun, SEEDS, STEPS, Subject, saved_at};

/// Checks that forgetting any field but `constants` shows in what the device does afterwards.
pub(crate) fn check<S: Subject>(constants: &[&str])
where
    S::Device: Serialize + DeserializeOwned,
{
    let fresh = to_value(&S::build());
    let mut unnoticed = Vec::new();
    fields(&fresh, &mut String::new(), &mut unnoticed);
    for seed in 0..SEEDS {
        let mut run = ContractRun::<S>::new(seed);
        for _ in 0..saved_at(seed) {
            run.step();
        }
        let state = to_value(&run.device);
        let forgetful = unnoticed
            .iter()
            .map(|field| forget::<S>(&run, &state, &fresh, field))
            .collect::<Vec<_>>();
        let history: Vec<String> = (saved_at(seed)..STEPS).map(|_| run.step()).collect();
        let memory = run.memory();
        let noticed = |forgetful: Option<ContractRun<S>>| {
            forgetful.is_some_and(|mut run| history.iter().any(|step| *step != run.step()) || memory != run.memory())
        };
        let mut noticed = forgetful.into_iter().map(noticed);
        unnoticed.retain(|_| !noticed.next().expect("one for each"));
    }
    assert_eq!(unnoticed, constants, "fields whose loss shows nowhere");
}

/// Every field, as a JSON pointer; lists count as one, but lists of structs have the fields of each.
fn fields(value: &Value, path: &mut String, found: &mut Vec<String>) {
    let children: Vec<(String, &Value)> = match value {
        Value::Object(fields) => fields.iter().map(|(name, field)| (name.clone(), field)).collect(),
        Value::Array(items) if items.first().is_some_and(Value::is_object) => items
            .iter()
            .enumerate()
            .map(|(index, item)| (index.to_string(), item))
            .collect(),
        _ => return found.push(path.clone()),
    };
    for (name, child) in children {
        let len = path.len();
        path.push('/');
        path.push_str(&name);
        fields(child, path, found);
        path.truncate(len);
    }
}

/// The run with `field` as in a fresh device; none if it is so anyway.
fn forget<S: Subject>(run: &ContractRun<S>, state: &Value, fresh: &Value, field: &str) -> Option<ContractRun<S>>
where
    S::Device: DeserializeOwned,
{
    let mut state = state.clone();
    let (lost, initial) = (state.pointer_mut(field)?, fresh.pointer(field)?);
    if lost == initial {
        return None;
    }
    *lost = initial.clone();
    let device = serde_json::from_value(state).expect("a field of another state of the same device");
    Some(run.with(device))
}

fn to_value<T: Serialize>(device: &T) -> Value {
    serde_json::to_value(device).expect("a state that serialises")
}
