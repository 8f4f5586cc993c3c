"""Who sends an SQS request: the access key id is a token's name, and its secret is the session token or the key."""

from __future__ import annotations

import time
from hmac import compare_digest

from web.access.authentication import ANY_RIGHT, Access, Forbidden
from web.access.tokens import Grant, hash_of
from web.native.request import GRANT, Environ
from web.sqs.errors import SqsError
from web.sqs.signatures import Signature, refused


def admit(access: Access, environ: Environ, signature: Signature | None) -> Grant:
    """Put the caller's grant into the environ, and return it. Raises SqsError, Forbidden, TooManyFailures.

    Without a session token the signature proves the secret: `check_signature` must follow, with the body.
    """
    if signature is None:
        raise SqsError(
            "MissingAuthenticationTokenException",
            "The request must be signed (AWS Signature Version 4): set the token's name as access key id.",
        )
    grant = access.grant_named(signature.scope.name)
    if grant is None:
        access.count_failure(environ)
        raise SqsError("UnrecognizedClientException", "The security token included in the request is invalid.")
    if signature.session_token is not None:
        if not compare_digest(grant.digest, hash_of(signature.session_token)):
            access.count_failure(environ)
            raise SqsError("UnrecognizedClientException", "The security token included in the request is invalid.")
    elif grant.secret is None:
        raise refused(
            "The service stores only a hash of this token's secret, so it cannot check signatures: "
            "set the session token (AWS_SESSION_TOKEN) to the secret."
        )
    environ[GRANT] = grant
    if not ANY_RIGHT & grant.rights:
        raise Forbidden(f"the token '{grant.name}' may not use queues")
    return grant


def check_signature(access: Access, environ: Environ, grant: Grant, signature: Signature, body: bytes) -> None:
    """Check a signature that has no session token beside it. Raises SqsError, TooManyFailures."""
    if signature.session_token is not None or grant.secret is None:
        return
    signature.check_time(time.time())
    if not signature.is_valid(grant.secret.text, environ, body):
        access.count_failure(environ)
        raise refused(
            "The request signature we calculated does not match the signature you provided. Check your AWS Secret "
            "Access Key and signing method."
        )
