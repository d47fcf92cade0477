"""What we must be allowed to do, and the gcloud line that allows it. Pure.

Pub/Sub itself only says "User not authorized to perform this action".
"""

from __future__ import annotations

__all__ = ["ATTACH", "CONSUME", "CREATE", "LOOK", "PUBLISH", "missing"]

PUBLISH = "pubsub.topics.publish"
CONSUME = "pubsub.subscriptions.consume"
LOOK = "pubsub.subscriptions.get"
CREATE = "pubsub.subscriptions.create"
ATTACH = "pubsub.topics.attachSubscription"

#: The smallest of Google's roles that has a permission.
ROLES = {
    PUBLISH: "roles/pubsub.publisher",
    CONSUME: "roles/pubsub.subscriber",
    LOOK: "roles/pubsub.viewer",
    CREATE: "roles/pubsub.editor",
    ATTACH: "roles/pubsub.subscriber",
}


def missing(permission: str, project: str, account: str = "") -> str:
    """Say which permission is missing, and what grants it.

    Args:
        permission: One of those above.
        project: The project's id.
        account: Who we are, an email; "" where we don't know.
    """
    member = f"serviceAccount:{account}" if account else "serviceAccount:ACCOUNT"
    if account and not account.endswith(".gserviceaccount.com"):
        member = f"user:{account}"
    return (
        f"the permission {permission} is missing: gcloud projects add-iam-policy-binding {project} "
        f"--member={member} --role={ROLES[permission]}"
    )
