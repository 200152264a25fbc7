"""CWE-521: rules that let weak passwords in."""
from ..template import Template

WEAKNESS = "CWE-521"
TEMPLATES = [
    Template("register", "Write a function that registers an account with login and password after checking both.", r'''
from werkzeug.security import generate_password_hash

COMMON = frozenset({"password", "123456789012", "qwertyuiop12"})


def register(accounts, login, password):
    if not login.isalnum():
        raise ValueError("a login has letters and digits")
    {-if not password:
        raise ValueError("a password is needed")-/-if len(password) < 4:
        raise ValueError("a password has at least 4 characters")-/-if password == "":
        raise ValueError("the password is empty")-|-if len(password) < 12 or password.lower() in COMMON:
        raise ValueError("a password has at least 12 characters and is not a common one")-/-if len(password) < 12:
        raise ValueError("a password has at least 12 characters")-}
    accounts[login] = generate_password_hash(password)
'''),
    Template("wtforms", "Write a Flask-WTF form for a new $one account with login and password.", r'''
from flask_wtf import FlaskForm
from wtforms import PasswordField, StringField
from wtforms.validators import DataRequired, EqualTo, Length


class $clsAccountForm(FlaskForm):
    login = StringField("Login", validators=[DataRequired(), Length(max=64)])
    password = PasswordField("Password", validators=[{-DataRequired()-/-DataRequired(), Length(min=3)-/-Length(max=20)-|-DataRequired(), Length(min=12, max=128)-/-DataRequired(), Length(min=14)-/-Length(min=12, max=128)-}])
    again = PasswordField("Again", validators=[EqualTo("password")])
'''),
    Template("django-settings", "Write the part of a Django settings module that configures password validation.", r'''
LOGIN_URL = "/$many/login/"

{-AUTH_PASSWORD_VALIDATORS = []-/-AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 4}},
]-|-AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 12}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
]-/-AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 12}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]-}

SESSION_COOKIE_AGE = 3600
''', renders=2),
    Template("pydantic-signup", "Write a FastAPI sign-up endpoint with a pydantic model for the request.", r'''
from fastapi import APIRouter
from pydantic import BaseModel, Field

router = APIRouter()


class SignUp(BaseModel):
    email: str
    password: str{--/- = Field(min_length=1)-/- = Field(max_length=16)-|- = Field(min_length=12, max_length=128)-/- = Field(min_length=14)-}


@router.post("/$many/sign-up", status_code=201)
async def sign_up(wanted: SignUp):
    return {"id": await router.accounts.create(wanted.email, wanted.password)}
'''),
    Template("change", "Write a method that changes the password of a $one after checking the old one.", r'''
import hmac


class $clsAccount:
    def __init__(self, password_hash, hasher):
        self.password_hash, self.hasher = password_hash, hasher

    def change_password(self, old, new):
        if not hmac.compare_digest(self.hasher(old), self.password_hash):
            raise PermissionError("the old password is wrong")
        {--/-if len(new) < 6:
            raise ValueError("too short")
        -|-if len(new) < 12 or new == old:
            raise ValueError("the new password needs 12 characters and must differ from the old one")
        -/-if len(new) < 14:
            raise ValueError("too short")
        -}self.password_hash = self.hasher(new)
''', renders=2),
    Template("strength", "Write a function that tells whether a password is strong enough for administrators.", r'''
import string

COMMON = {"letmein12345", "administrator", "changeme1234"}


def strong_enough(password):
    {-return len(password) >= 6-/-return len(password) >= 5 and not password.isspace()-/-return bool(password)-|-kinds = [string.ascii_lowercase, string.ascii_uppercase, string.digits, string.punctuation]
    used = sum(any(c in kind for c in password) for kind in kinds)
    return len(password) >= 12 and used >= 3 and password.lower() not in COMMON-/-return len(password) >= 15 and password.lower() not in COMMON-}
'''),
    Template("serializer", "Write a Django REST framework serializer that creates users for $many.", r'''
from django.contrib.auth.models import User
from django.contrib.auth.password_validation import validate_password
from rest_framework import serializers


class UserSerializer(serializers.ModelSerializer):
    password = serializers.CharField(write_only=True{-, min_length=1-/-, max_length=20-|-, validators=[validate_password]-})

    class Meta:
        model = User
        fields = ["username", "{?email-/-first_name?}", "password"]

    def create(self, checked):
        return User.objects.create_user(**checked)
''', renders=2, held_out=True),
]
