# The trainer reads and writes under the prefix; the server only reads. Neither changes the bucket or removes old versions.
locals {
  # Of arn:aws:iam::111122223333:oidc-provider/oidc.eks.eu-central-1.amazonaws.com/id/ABC, what is after the first slash
  issuer = replace(var.oidc_provider_arn, "/^[^/]*//", "")
  # Names of roles have at most 64 characters, those of buckets 63
  role_prefix = length(var.bucket) <= 56 ? var.bucket : "${substr(var.bucket, 0, 47)}-${substr(sha256(var.bucket), 0, 8)}"
}

data "aws_iam_policy_document" "trainer_trust" {
  dynamic "statement" {
    for_each = length(var.trainer_principals) > 0 ? [1] : []
    content {
      actions = ["sts:AssumeRole"]
      principals {
        type        = "AWS"
        identifiers = var.trainer_principals
      }
    }
  }
  dynamic "statement" { # service accounts of Kubernetes, by the token that the cluster signs
    for_each = var.oidc_provider_arn != "" && length(var.trainer_subjects) > 0 ? [1] : []
    content {
      actions = ["sts:AssumeRoleWithWebIdentity"]
      principals {
        type        = "Federated"
        identifiers = [var.oidc_provider_arn]
      }
      condition {
        test     = "StringEquals"
        variable = "${local.issuer}:sub"
        values   = var.trainer_subjects
      }
      condition {
        test     = "StringEquals"
        variable = "${local.issuer}:aud"
        values   = ["sts.amazonaws.com"]
      }
    }
  }
}

data "aws_iam_policy_document" "server_trust" {
  dynamic "statement" {
    for_each = length(var.server_principals) > 0 ? [1] : []
    content {
      actions = ["sts:AssumeRole"]
      principals {
        type        = "AWS"
        identifiers = var.server_principals
      }
    }
  }
  dynamic "statement" { # service accounts of Kubernetes, by the token that the cluster signs
    for_each = var.oidc_provider_arn != "" && length(var.server_subjects) > 0 ? [1] : []
    content {
      actions = ["sts:AssumeRoleWithWebIdentity"]
      principals {
        type        = "Federated"
        identifiers = [var.oidc_provider_arn]
      }
      condition {
        test     = "StringEquals"
        variable = "${local.issuer}:sub"
        values   = var.server_subjects
      }
      condition {
        test     = "StringEquals"
        variable = "${local.issuer}:aud"
        values   = ["sts.amazonaws.com"]
      }
    }
  }
}

data "aws_iam_policy_document" "trainer" {
  statement {
    sid       = "FindBucket"
    actions   = ["s3:GetBucketLocation", "s3:GetBucketVersioning", "s3:GetLifecycleConfiguration", "s3:ListBucketMultipartUploads"]
    resources = [aws_s3_bucket.data.arn]
  }
  statement {
    sid       = "ListPrefix"
    actions   = ["s3:ListBucket", "s3:ListBucketVersions"]
    resources = [aws_s3_bucket.data.arn]
    condition {
      test     = "StringLike"
      variable = "s3:prefix"
      values   = [var.prefix, "${var.prefix}/*"]
    }
  }
  statement {
    sid = "ReadAndWriteObjects"
    actions = [
      "s3:AbortMultipartUpload",
      "s3:DeleteObject",
      "s3:GetObject",
      "s3:ListMultipartUploadParts",
      "s3:PutObject",
    ]
    resources = ["${aws_s3_bucket.data.arn}/${var.prefix}/*"]
  }
}

data "aws_iam_policy_document" "server" {
  statement {
    sid       = "FindBucket"
    actions   = ["s3:GetBucketLocation"]
    resources = [aws_s3_bucket.data.arn]
  }
  statement {
    sid       = "ListPrefix"
    actions   = ["s3:ListBucket"]
    resources = [aws_s3_bucket.data.arn]
    condition {
      test     = "StringLike"
      variable = "s3:prefix"
      values   = [var.prefix, "${var.prefix}/*"]
    }
  }
  statement {
    sid       = "ReadObjects"
    actions   = ["s3:GetObject"]
    resources = ["${aws_s3_bucket.data.arn}/${var.prefix}/*"]
  }
}

resource "aws_iam_role" "trainer" {
  name                 = "${local.role_prefix}-trainer"
  assume_role_policy   = data.aws_iam_policy_document.trainer_trust.json
  max_session_duration = 43200
}

resource "aws_iam_role" "server" {
  name               = "${local.role_prefix}-server"
  assume_role_policy = data.aws_iam_policy_document.server_trust.json
}

resource "aws_iam_role_policy" "trainer" {
  name   = "data"
  role   = aws_iam_role.trainer.id
  policy = data.aws_iam_policy_document.trainer.json
}

resource "aws_iam_role_policy" "server" {
  name   = "data"
  role   = aws_iam_role.server.id
  policy = data.aws_iam_policy_document.server.json
}
