# SPDX-License-Identifier: Apache-2.0
"""Programs here are small."""

from quick_compilation import quick_compilation  # noqa: F401 (a fixture)
