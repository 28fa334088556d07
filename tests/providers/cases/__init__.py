"""One case for each integration (tests/providers/conformance.py)."""

from __future__ import annotations

from tests.providers.cases.aws import AwsCase, AwsInvocationLogsCase
from tests.providers.cases.azure import AzureCase
from tests.providers.cases.coding_tools import ClaudeCodeCase, CodexCase
from tests.providers.cases.gateway_files import HeliconeCase, LangfuseExportCase
from tests.providers.cases.google import GoogleCase
from tests.providers.cases.langfuse import LangfuseCase
from tests.providers.cases.litellm import LiteLLMCase
from tests.providers.cases.simulated import AnthropicCase, OpenAICase
from tests.providers.conformance import Case

CASES: tuple[type[Case], ...] = (
    OpenAICase,
    AnthropicCase,
    AwsCase,
    AwsInvocationLogsCase,
    AzureCase,
    GoogleCase,
    ClaudeCodeCase,
    CodexCase,
    LiteLLMCase,
    LangfuseCase,
    LangfuseExportCase,
    HeliconeCase,
)
